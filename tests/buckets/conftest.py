"""One server of each kind for all tests here: the clients remember where they connected."""

import importlib.util

import pytest

from tests.buckets.servers import BUCKET, GcsServer, s3_server


def require(client):
    """Skips where it is missing; it is for `storage` to import it, set up."""
    if importlib.util.find_spec(client) is None:
        pytest.skip(f"{client} is not installed")


@pytest.fixture(scope="session")
def gcs():
    require("gcsfs")
    with GcsServer():
        yield f"gs://{BUCKET}"


@pytest.fixture(scope="session")
def s3():
    require("s3fs")
    with s3_server():
        yield f"s3://{BUCKET}"


@pytest.fixture
def folder(gcs, seed):
    """A folder of its own in one bucket, for what is made of calls that `bucket` tests."""
    return f"{gcs}/{seed}"


@pytest.fixture(params=["gcs", "s3"])
def bucket(request, seed):
    """A folder of its own in a bucket."""
    return f"{request.getfixturevalue(request.param)}/{seed}"
