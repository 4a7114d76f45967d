"""What a bucket has for the calls of `storage`: its client, one-line errors, whole folders.

Every function here takes URLs. Other modules call `storage`, which takes local paths too.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, cast

from etils import epath

from deberta_jax.errors import UserError

# The schemes of `epath`, and the extra of setup.py that installs the client; "": none of ours.
SCHEMES = {"gs": "gcs", "s3": "s3", "az": "", "hf": ""}
# Packages whose exceptions are a store's answers.
_CLIENTS = ("gcsfs", "google", "s3fs", "botocore", "aiobotocore", "aiohttp")
# A folder that is copied to the local disk is one checkpoint, or one tokenizer.
_MOST_COPIED = 1000


def path(url: str) -> pathlib.Path:
    """An `epath.Path`, which has the methods of a local path.

    Raises:
        UserError: an unknown scheme, or no bucket.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{known}://" for known in SCHEMES)
        raise UserError(f"{url}: there is no storage {scheme}://; it must be a path, or {known}")
    if rest[:1] in ("", "/"):
        raise UserError(f"{url}: the bucket is missing, as in {scheme}://BUCKET/DIRECTORY")
    _configure()
    return cast(pathlib.Path, epath.Path(url))


def check(url: str) -> None:
    """Asks the bucket of a URL for one name, so that mistakes show at once.

    Raises:
        UserError: its client is not installed; the bucket is not there, or these credentials may
            not list it.
    """
    scheme, _, rest = url.partition("://")
    _check_bucket(scheme, rest.partition("/")[0])


@functools.cache
def _check_bucket(scheme: str, bucket: str) -> None:
    url = f"{scheme}://{bucket}"
    files = client(url)
    with one_line(url, "there is no such bucket"):
        if scheme == "gs":
            files.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        elif scheme == "s3":
            files.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)


@functools.cache
def _configure() -> None:
    """Sets up the clients, before the first of them is made."""
    import fsspec

    # The layout of every bucket would be asked for, which needs a permission of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # It logs what it raises, traceback and all.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    for scheme in ("gs", "gcs", *SCHEMES):
        # Orbax, ArrayRecord and other hosts write past fsspec: what it listed once is soon wrong.
        fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)


def client(url: str | os.PathLike) -> Any:
    """The fsspec client of a URL's storage, the same that `epath` has.

    Raises:
        UserError: it is not installed.
    """
    _configure()
    import fsspec

    scheme = os.fspath(url).partition("://")[0]
    try:
        return fsspec.filesystem(scheme, **({"finalize_on_close": True} if scheme == "gs" else {}))
    except ImportError as error:
        extra = SCHEMES.get(scheme)
        how = f"pip install 'deberta_jax[{extra}]'" if extra else error
        raise UserError(f"{scheme}:// needs a client that is not installed: {how}") from error


@contextlib.contextmanager
def one_line(url: str | os.PathLike, missing: str = "no such file") -> Iterator[None]:
    """Whatever a client raises inside becomes one line about `url`.

    Args:
        url: what the block reads or writes.
        missing: the line where it is not there.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{url}: {missing}") from error
    except Exception as error:  # each client has kinds of its own
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in _CLIENTS:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"{url}: the storage refuses ({reason}); check the credentials (docs/storage.md)"
        ) from error


def create(url: str, data: str) -> bool:
    """Writes an object that is not there yet; of several that try at once one succeeds.

    A bucket compares and writes in one request (`ifGenerationMatch=0`, `If-None-Match: *`).

    Returns:
        False where it is there already.
    """
    try:
        client(url).pipe_file(url, data.encode(), mode="create")
    except FileExistsError:
        return False
    except Exception as error:  # each client has kinds of its own
        if "412" in str(error) or "PreconditionFailed" in str(error):
            return False
        raise
    return True


def move(source: str, target: str, last: str) -> None:
    """Moves a folder's objects, which a bucket copies and then deletes, one by one.

    At every moment one of the two folders is whole: `last`, the file without which a folder counts
    as unfinished, is copied last and deleted first.
    """
    files, root = client(source), source.partition("://")[2]
    with one_line(source, "there is no such folder"):
        names = [name.removeprefix(root).lstrip("/") for name in files.find(source)]
        if not names:
            raise FileNotFoundError(source)
        others = [name for name in names if name != last and not name.endswith("/")]
        files.copy([f"{source}/{n}" for n in others], [f"{target}/{n}" for n in others])
        if last in names:
            files.copy(f"{source}/{last}", f"{target}/{last}")
            files.rm_file(f"{source}/{last}")
        if others:
            files.rm(source, recursive=True)


def local_copy(url: str) -> pathlib.Path:
    """A local directory with a folder's files, as `storage.local_copy` describes it."""
    files, url = client(url), url.rstrip("/")
    with one_line(url, "there is no such folder"):
        listed = files.find(url, detail=True)
    root = url.partition("://")[2]
    sizes = {
        name.removeprefix(root).lstrip("/"): [info["size"], str(info.get("etag", info.get("ETag")))]
        for name, info in listed.items()
        if not name.endswith("/")
    }
    if not sizes:
        raise UserError(f"{url} is no directory: nothing in the bucket begins with that name")
    if len(sizes) > _MOST_COPIED:
        raise UserError(f"{url} holds {len(sizes):,} files; name the folder of one checkpoint")
    digest = hashlib.sha256(json.dumps([url, sizes], sort_keys=True).encode()).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    copies = pathlib.Path(cache) / "deberta_jax/copies"
    target = copies / digest / path(url).name
    if target.is_dir():
        return target
    copies.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=copies) as unfinished, one_line(url, "changed"):
        made = pathlib.Path(unfinished) / digest
        for name in sizes:
            file = made / target.name / name
            file.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{url}/{name}", str(file))
        with contextlib.suppress(OSError):  # another process was quicker
            made.rename(target.parent)
    return target
