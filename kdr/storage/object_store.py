"""Places in an object store (`s3://`, `gs://`), with the names and the behaviour of `pathlib.Path`
where kdr needs them.

Credentials come from the environment alone: the variables and files of the AWS and Google
libraries, or the role of a machine. `AWS_ENDPOINT_URL` names a server that speaks S3. There are no
folders, and no rename: an object appears whole, by one request.
"""

import errno
import functools
import mmap
import os
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from kdr.errors import StorageError
from kdr.storage.patience import BRIEF_S, patiently

T = TypeVar("T")

SCHEMES = ("s3", "gs")
_AWAY = (
    *(
        "NETWORK_CONNECTION",
        "SLOW_DOWN",
        "SERVICE_UNAVAILABLE",
        "INTERNAL_FAILURE",
        "REQUEST_TIMEOUT",
        "THROTTLING",
    ),
    *("HTTP status 50", "curlCode", "UNAVAILABLE", "DEADLINE_EXCEEDED", "Retry policy exhausted"),
)
"""Of the words of pyarrow's errors those that say that the store cannot be reached, or is busy."""
_REFUSED = (
    *(
        "ACCESS_DENIED",
        "INVALID_ACCESS_KEY",
        "SIGNATURE_DOES_NOT_MATCH",
        "INVALID_CLIENT_TOKEN",
        "UNRECOGNIZED_CLIENT",
    ),
    *(
        "MISSING_AUTHENTICATION",
        "INVALID_SIGNATURE",
        "EXPIRED",
        "HTTP status 401",
        "HTTP status 403",
    ),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "Could not create a OAuth2 access token"),
)
"""Those that say that the credentials are missing or do not open the bucket."""
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of every "
        "process"
    ),
    "gs": "GOOGLE_APPLICATION_CREDENTIALS in the environment of every process",
}


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or all objects whose names begin so.

    It is no `os.PathLike`: what wants a file of this machine must ask for one
    (`kdr.storage.files.fetched`).
    """

    scheme: str
    key: str
    """Bucket, then the name in it: `bucket/prefix/name`, without a slash at its end."""
    patience_s: float = field(default=BRIEF_S, compare=False)
    """How long to wait for a store that cannot be reached."""

    @classmethod
    def at(cls, url: str, *, patience_s: float = BRIEF_S) -> "ObjectPath":
        """The place at a URL, whose bucket is there.

        Raises:
            StorageError: for another scheme, or a bucket that is not there or that the credentials
                do not open.
        """
        scheme, _, rest = url.partition("://")
        key = "/".join(part for part in rest.split("/") if part)
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise StorageError(
                f"--storage: must be a folder or a URL that begins with {known}, got {scheme}://..."
            )
        if not key or any(mark in key for mark in "@?#"):
            example = f"{scheme}://bucket/prefix"
            raise StorageError(
                f"--storage: must be {example}, credentials and options in the environment, got "
                "another form"
            )
        place = cls(scheme, key, patience_s)
        place.check_bucket()
        return place

    def check_bucket(self) -> None:
        """Raises StorageError unless the bucket is there."""
        bucket = self.key.partition("/")[0]
        if not _found(self._ask(lambda store: store.get_file_info(bucket))):
            raise StorageError(_no_bucket(self))

    def with_patience(self, patience_s: float) -> "ObjectPath":
        """The same place, waited for so long."""
        return replace(self, patience_s=patience_s)

    def __truediv__(self, name: str) -> "ObjectPath":
        return replace(self, key=f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @property
    def name(self) -> str:
        """What comes after the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """What comes before it."""
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return PurePosixPath(self.name).stem

    def with_name(self, name: str) -> "ObjectPath":
        """The object of another name beside this one."""
        return self.parent / name

    def with_suffix(self, suffix: str) -> "ObjectPath":
        """The object whose name has another ending."""
        return self.with_name(f"{self.stem}{suffix}")

    def exists(self) -> bool:
        """Whether there is such an object, or one below it."""
        return _found(self._ask(lambda store: store.get_file_info(self.key)))

    def is_file(self) -> bool:
        """Whether there is such an object."""
        return bool(self._ask(lambda store: store.get_file_info(self.key)).is_file)

    def is_dir(self) -> bool:
        """Whether there are objects below it."""
        return next(self.iterdir(), None) is not None

    def iterdir(self) -> Iterator["ObjectPath"]:
        """What lies directly below it."""
        from pyarrow.fs import FileSelector

        for info in self._ask(
            lambda store: store.get_file_info(FileSelector(self.key, allow_not_found=True))
        ):
            yield replace(self, key=info.path.rstrip("/"))

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            FileNotFoundError: if there is no such object.
        """

        def read(store: Any) -> bytes:
            with store.open_input_stream(self.key) as stream:
                content: bytes = stream.read()
                return content

        return self._ask(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        """The content as text.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: "bytes | mmap.mmap") -> None:
        """Makes or replaces the object, by one request; of more than 10 MB by several, of which the
        last one makes it appear.
        """

        def write(store: Any) -> None:
            stream = store.open_output_stream(self.key)
            stream.write(content)
            # not by a context: that would close it, and so make the object, after an error, too
            stream.close()

        self._ask(write)

    def upload(self, file: Path) -> None:
        """Makes or replaces the object with the content of a file."""
        with file.open("rb") as opened:
            if not file.stat().st_size:
                self.write_bytes(b"")
                return
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self.write_bytes(content)

    def touch(self) -> None:
        """Makes an empty object."""
        self.write_bytes(b"")

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: there are no folders."""

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes the object.

        Raises:
            FileNotFoundError: if there is none, unless that is allowed.
        """
        try:
            self._ask(lambda store: store.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "ObjectPath") -> None:
        """Moves the object: first it is copied, then removed.

        Raises:
            FileNotFoundError: if there is none.
        """
        self._ask(lambda store: store.copy_file(self.key, target.key))
        self.unlink(missing_ok=True)

    def _ask(self, action: Callable[[Any], T]) -> T:
        """What a store answers, waited for if need be; its errors as those of files, or with a way
        out.
        """

        def once() -> T:
            try:
                return action(_store(self.scheme, self.key.partition("/")[0]))
            except FileNotFoundError:
                raise
            except OSError as error:
                if any(word in str(error) for word in _AWAY):
                    raise ConnectionError(errno.ENOTCONN, _reason(error)) from error
                raise self._explained(error) from error

        try:
            return patiently(once, patience_s=self.patience_s)
        except ConnectionError as error:
            raise StorageError(
                f"{self}: the object store must be reachable, got: {error.strerror}. "
                "What is logged is kept: run the same command again"
            ) from error

    def _explained(self, error: OSError) -> Exception:
        if "NO_SUCH_BUCKET" in str(error):
            return StorageError(_no_bucket(self))
        if any(word in str(error) for word in _REFUSED):
            return StorageError(
                "--storage: needs credentials that may read and write "
                f"{self.scheme}://{self.key.partition('/')[0]}, got: {_reason(error)}. Set "
                f"{_CREDENTIALS[self.scheme]}"
            )
        return StorageError(f"{self}: the object store must answer, got: {_reason(error)}")


def _no_bucket(path: ObjectPath) -> str:
    bucket = path.key.partition("/")[0]
    return (
        f"--storage: needs a bucket that exists, got {path.scheme}://{bucket}, which does not. "
        "Make it, or name another one"
    )


def _found(info: Any) -> bool:
    from pyarrow.fs import FileType

    return bool(info.type != FileType.NotFound)


def _reason(error: OSError) -> str:
    """What a store said, without the name of the object and the number of the request."""
    return str(error).partition(" (Request ID")[0].rpartition("AWS Error ")[2].splitlines()[0]


@functools.lru_cache
def _store(scheme: str, bucket: str) -> Any:
    """Pyarrow's file system for one bucket; a process has one of each."""
    import pyarrow.fs

    if scheme == "gs":
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=15))
    endpoint = urllib.parse.urlsplit(
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint.netloc:
        region = pyarrow.fs.resolve_s3_region(bucket)
    return pyarrow.fs.S3FileSystem(
        region=region or None,
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or None,
        connect_timeout=5,
        request_timeout=60,
        background_writes=False,
        allow_delayed_open=True,  # one request for a small object, not the three of a large one
    )
