"""A real S3 server on this machine, for tests of storages in an object store."""

import collections
import contextlib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kdr.storage.layout import Storage

moto = pytest.importorskip(
    "moto.server",
    reason="moto[s3], an S3 server, is a package of the extra `dev`",
)


@dataclass
class BucketServer:
    """The server; its buckets survive `stop`."""

    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    _running: Any = None

    def start(self) -> None:
        self._running = moto.ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._running.start()
        self.port = self._running.get_host_and_port()[1]
        app = self._running._server.app

        def counting(environ: dict[str, Any], start: Any) -> Any:
            self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            return app(environ, start)

        self._running._server.app = counting

    def stop(self) -> None:
        self._running.stop()

    def counts(self) -> dict[str, int]:
        """Number of requests by method, since the last call."""
        found = dict(collections.Counter(method for method, _ in self.requests))
        self.requests.clear()
        return found

    def place(self, bucket: str) -> Storage:
        """An empty prefix in a new bucket."""
        urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:{self.port}/{bucket}", method="PUT")
        ).close()
        place = Storage.at(f"s3://{bucket}/some/prefix/")
        self.requests.clear()
        return place


@contextlib.contextmanager
def bucket_server() -> Iterator[BucketServer]:
    """A running server, with the environment set to it for this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        running = BucketServer()
        running.start()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.port}",
            "AWS_ACCESS_KEY_ID": "anyone",
            "AWS_SECRET_ACCESS_KEY": "a secret that no message shows",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        yield running
        running.stop()
