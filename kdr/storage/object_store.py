"""ObjectPath: an object in an object store (`s3://`, `gs://`), through pyarrow's clients.

Credentials come from the environment alone: the variables and files of the AWS and Google
libraries, or the machine's role. `AWS_ENDPOINT_URL` selects another server that speaks S3. There
are no folders and no rename, but an object appears whole, by a single request.
"""

import contextlib
import errno
import functools
import mmap
import os
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from kdr.errors import StorageError
from kdr.storage.local_path import LocalPath
from kdr.storage.patience import BRIEF_S, patiently

T = TypeVar("T")

SCHEMES = ("s3", "gs")
_LOCAL = "KDR_LOCAL"
"""Variable with the folder for files that stay on this machine."""
# pyarrow raises a plain OSError without errno for every failure of a store, so only the text of the
# error distinguishes failures. These two lists can go when pyarrow has error classes.
_AWAY = (
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "THROTTLING",
    "HTTP status 50",
    "curlCode",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "Retry policy exhausted",
)
"""Parts of pyarrow's messages that mean: the store is unreachable or busy, so a retry may help."""
_REFUSED = (
    "ACCESS_DENIED",
    "INVALID_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH",
    "INVALID_CLIENT_TOKEN",
    "UNRECOGNIZED_CLIENT",
    "MISSING_AUTHENTICATION",
    "INVALID_SIGNATURE",
    "EXPIRED",
    "HTTP status 401",
    "HTTP status 403",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "Could not create a OAuth2 access token",
)
"""Parts of its messages that mean: the credentials are missing or have no access to the bucket."""
_CREDENTIALS = {
    "s3": (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment of every "
        "process"
    ),
    "gs": "GOOGLE_APPLICATION_CREDENTIALS in the environment of every process",
}


@dataclass(frozen=True, order=True)
class ObjectPath:
    """An object, or the common prefix of objects, with the methods of
    `kdr.storage.files.StoredPath`.

    Deliberately not an `os.PathLike`: code that needs a local file must ask for one with `fetched`,
    and fails at once if it does not.
    """

    scheme: str
    key: str
    """Bucket and name: `bucket/prefix/name`, without a trailing slash."""
    patience_s: float = field(default=BRIEF_S, compare=False)
    """How long to retry while the store is unreachable."""

    appears_whole = True
    """A PUT, or the last request of a multipart upload, makes all of an object visible at once."""
    num_parallel_reads = 16
    """Each read waits for two round trips; the processor is idle meanwhile."""

    @classmethod
    def at(cls, url: str, *, patience_s: float = BRIEF_S) -> "ObjectPath":
        """Returns the path of a URL after checking that its bucket exists.

        Raises:
            StorageError: for another scheme, or a bucket that does not exist or is not accessible
                with these credentials.
        """
        scheme, _, rest = url.partition("://")
        key = "/".join(part for part in rest.split("/") if part)
        if scheme not in SCHEMES:
            known = ", ".join(f"{name}://" for name in SCHEMES)
            raise StorageError(
                f"--storage: must be a folder or a URL that starts with {known}, got {scheme}://..."
            )
        if not key or any(mark in key for mark in "@?#"):
            # not repeated in the message: it may contain a password
            raise StorageError(
                f"--storage: must be {scheme}://bucket/prefix, with credentials and options in the "
                "environment, got another form"
            )
        place = cls(scheme, key, patience_s)
        place.check_bucket()
        return place

    def check_bucket(self) -> None:
        """Raises StorageError unless the bucket exists."""
        bucket = self.key.partition("/")[0]
        if not _found(self._ask(lambda store: store.get_file_info(bucket))):
            raise StorageError(_no_bucket(self))

    def with_patience(self, patience_s: float) -> "ObjectPath":
        """Returns the same path with another time limit for retries."""
        return replace(self, patience_s=patience_s)

    def __truediv__(self, name: str, /) -> "ObjectPath":
        return replace(self, key=f"{self.key}/{name}")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.key}"

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "ObjectPath":
        """The path without its last part."""
        return replace(self, key=self.key.rpartition("/")[0])

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    def with_name(self, name: str, /) -> "ObjectPath":
        """Returns the object of another name under the same prefix."""
        return self.parent / name

    def with_suffix(self, suffix: str, /) -> "ObjectPath":
        """Returns the object whose name has another suffix."""
        return self.with_name(f"{self.stem}{suffix}")

    def exists(self) -> bool:
        """Returns whether this object exists, or one below it."""
        return _found(self._ask(lambda store: store.get_file_info(self.key)))

    def is_file(self) -> bool:
        """Returns whether this object exists."""
        return bool(self._ask(lambda store: store.get_file_info(self.key)).is_file)

    def is_dir(self) -> bool:
        """Returns whether there are objects below it."""
        return next(self.iterdir(), None) is not None

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yields the objects and prefixes directly below it."""
        from pyarrow.fs import FileSelector

        for info in self._ask(
            lambda store: store.get_file_info(FileSelector(self.key, allow_not_found=True))
        ):
            yield replace(self, key=info.path.rstrip("/"))

    def read_bytes(self) -> bytes:
        """Returns the content.

        Raises:
            FileNotFoundError: if there is no such object.
        """

        def read(store: Any) -> bytes:
            with store.open_input_stream(self.key) as stream:
                content: bytes = stream.read()
                return content

        return self._ask(read)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content as text.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: "bytes | mmap.mmap", /) -> None:
        """Creates or overwrites the object: in one request, or in several above 10 MB, the last of
        which makes the object appear.
        """

        def write(store: Any) -> None:
            stream = store.open_output_stream(self.key)
            stream.write(content)
            # not `with`: leaving it by an exception would close the stream, and closing creates the
            # object from what was sent so far
            stream.close()

        self._ask(write)

    def touch(self) -> None:
        """Creates an empty object."""
        self.write_bytes(b"")

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: there are no folders."""

    def rmdir(self) -> None:
        """Does nothing: there are no folders."""

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Deletes the object.

        Raises:
            FileNotFoundError: if there is no such object, unless `missing_ok` is true.
        """
        try:
            self._ask(lambda store: store.delete_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: "ObjectPath", /) -> None:
        """Moves the object: copies it, then deletes it. If that is interrupted, there are two
        copies, never none.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        self._ask(lambda store: store.copy_file(self.key, target.key))
        self.unlink(missing_ok=True)

    @property
    def local_folder(self) -> LocalPath:
        """A folder of this machine named after the URL, in KDR_LOCAL (`~/.cache/kdr`)."""
        folder = LocalPath(os.environ.get(_LOCAL) or "~/.cache/kdr").expanduser().absolute()
        return folder / urllib.parse.quote(str(self), safe="")

    @contextlib.contextmanager
    def written_aside(self) -> Iterator[Path]:
        """Yields a file of this machine and uploads it at the end; there is no temporary object."""
        with tempfile.TemporaryDirectory(prefix="kdr-") as folder:
            aside = Path(folder) / self.name
            aside.touch()
            yield aside
            self._upload(aside)

    @contextlib.contextmanager
    def fetched(self, *beside: str) -> Iterator[Path]:
        """Downloads the object, and others beside it, and removes the copies at the end."""
        with tempfile.TemporaryDirectory(prefix="kdr-") as folder:
            copy = Path(folder) / self.name
            copy.write_bytes(self.read_bytes())
            for name in beside:
                with contextlib.suppress(FileNotFoundError):
                    copy.with_name(name).write_bytes(self.with_name(name).read_bytes())
            yield copy

    def arrow_source(self) -> Any:
        """Returns the content. A fragment is small: one request for all of it is faster than one
        for each of its columns.
        """
        import pyarrow as pa

        return pa.BufferReader(self.read_bytes())

    def expose_at(self, place: Path) -> None:
        """Downloads the objects directly below it into a new folder."""
        place.mkdir(parents=True)
        for path in self.iterdir():
            (place / path.name).write_bytes(path.read_bytes())

    def age_s(self) -> float:
        """Returns the seconds since the object was written, by the clocks of store and machine.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        info = self._ask(lambda store: store.get_file_info(self.key))
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        return time.time() - float(info.mtime.timestamp())

    def remove_orphans(self) -> None:
        """Does nothing: there are no temporary objects."""

    def check_writable(self) -> None:
        """Raises StorageError unless an object can be written; it stays, named `writable`."""
        (self / "writable").write_bytes(b"kdr")

    def _upload(self, file: Path) -> None:
        with file.open("rb") as opened:
            if not file.stat().st_size:  # an empty file cannot be mapped
                self.write_bytes(b"")
                return
            # mapped, so that a large checkpoint is not read into memory
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                self.write_bytes(content)

    def _ask(self, action: Callable[[Any], T]) -> T:
        """Returns the result of an action on the store; retries while the store is unreachable.

        Raises:
            FileNotFoundError: if there is no such object.
            StorageError: for any other failure, with a hint.
        """

        def once() -> T:
            try:
                return action(_store(self.scheme, self.key.partition("/")[0]))
            except FileNotFoundError:
                raise
            except OSError as error:
                if any(word in str(error) for word in _AWAY):
                    # with an errno for which `patiently` retries
                    raise ConnectionError(errno.ENOTCONN, _reason(error)) from error
                raise self._explained(error) from error

        try:
            return patiently(once, patience_s=self.patience_s)
        except ConnectionError as error:
            raise StorageError(
                f"{self}: the object store is unreachable ({error.strerror}). Everything logged so "
                "far is kept: run the same command again"
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
        return StorageError(f"{self}: the object store failed: {_reason(error)}")


def _no_bucket(path: ObjectPath) -> str:
    bucket = path.key.partition("/")[0]
    return (
        f"--storage: must be in an existing bucket, got {path.scheme}://{bucket}, which does not "
        "exist. Create it, or name another one"
    )


def _found(info: Any) -> bool:
    from pyarrow.fs import FileType

    return bool(info.type != FileType.NotFound)


def _reason(error: OSError) -> str:
    """Returns the store's own message, without the object's name and the request's id."""
    return str(error).partition(" (Request ID")[0].rpartition("AWS Error ")[2].splitlines()[0]


@functools.lru_cache
def _store(scheme: str, bucket: str) -> Any:
    """Returns pyarrow's file system for a bucket; cached, because each keeps connections open."""
    import pyarrow.fs

    if scheme == "gs":
        # Google's client retries silently; `patiently` takes over after a while and says so
        return pyarrow.fs.GcsFileSystem(retry_time_limit=timedelta(seconds=15))
    endpoint = urllib.parse.urlsplit(
        os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    )
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region and not endpoint.netloc:
        region = pyarrow.fs.resolve_s3_region(bucket)  # asks AWS
    return pyarrow.fs.S3FileSystem(
        region=region or None,
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or None,
        connect_timeout=5,
        request_timeout=60,
        # a failed write must raise at once, not when the stream is closed
        background_writes=False,
        allow_delayed_open=True,  # one request for a small object, not the three of a large one
    )
