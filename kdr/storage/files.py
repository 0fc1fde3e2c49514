"""StoredPath, one interface for files and objects; safe writes and listings on top of it."""

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from kdr.errors import StorageError
from kdr.storage.local_path import LocalPath
from kdr.storage.patience import PATIENCE_S, patiently


class StoredPath(Protocol):
    """A file or folder of a storage.

    A `LocalPath` is on a file system, an `ObjectPath` in an object store. The first half has the
    names and the behaviour of `pathlib.Path`; the second half covers the differences of the two.
    """

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        ...

    @property
    def parent(self) -> Self:
        """The folder of this path."""
        ...

    def __truediv__(self, name: str, /) -> Self: ...

    def with_name(self, name: str, /) -> Self:
        """Returns the path of another name in the same folder."""
        ...

    def with_suffix(self, suffix: str, /) -> Self:
        """Returns the path with another suffix."""
        ...

    def exists(self) -> bool:
        """Returns whether there is a file or folder here."""
        ...

    def is_file(self) -> bool:
        """Returns whether there is a file here."""
        ...

    def is_dir(self) -> bool:
        """Returns whether there is a folder here."""
        ...

    def iterdir(self) -> Iterator[Self]:
        """Yields the direct children of a folder."""
        ...

    def read_bytes(self) -> bytes:
        """Returns the content."""
        ...

    def read_text(self, encoding: str = "utf-8") -> str:
        """Returns the content as text."""
        ...

    def write_bytes(self, content: bytes, /) -> object:
        """Creates or overwrites the file."""
        ...

    def touch(self) -> None:
        """Creates an empty file."""
        ...

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Creates a folder."""
        ...

    def rmdir(self) -> None:
        """Removes an empty folder."""
        ...

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Removes a file."""
        ...

    def replace(self, target: Self, /) -> object:
        """Moves a file within its storage, over the target if there is one."""
        ...

    @property
    def appears_whole(self) -> bool:
        """Whether files here are never cut off: readers see a whole file or nothing."""
        ...

    @property
    def num_parallel_reads(self) -> int:
        """How many files are worth reading at the same time."""
        ...

    @property
    def local_folder(self) -> LocalPath:
        """The folder for files that must stay on this machine, such as Ray's."""
        ...

    def written_aside(self) -> AbstractContextManager[Path]:
        """Yields a temporary path of this machine. Its content replaces this file when the block
        ends without an error; readers see the old content or the new, never part of it.
        """
        ...

    def fetched(self, *beside: str) -> AbstractContextManager[Path]:
        """Yields a path of this machine with this file's content, valid until the block ends.

        Args:
            beside: names of files in the same folder to fetch with it, if they exist.

        Raises:
            FileNotFoundError: if there is no such file, at the latest when it is opened.
        """
        ...

    def arrow_source(self) -> Any:
        """Returns a source from which pyarrow reads this file with few requests."""
        ...

    def expose_at(self, place: Path) -> None:
        """Makes the files of this folder readable at a path of this machine, by link or copy."""
        ...

    def age_s(self) -> float:
        """Returns the seconds since the file was last written.

        Raises:
            FileNotFoundError: if there is no such file.
        """
        ...

    def remove_orphans(self) -> None:
        """Removes temporary files that killed processes of this machine left in this folder."""
        ...

    def check_writable(self) -> None:
        """Raises StorageError unless files can be written here; creates the folder if missing."""
        ...

    def with_patience(self, patience_s: float) -> Self:
        """Returns the same path with another time limit for retries while it is unreachable."""
        ...


P = TypeVar("P", bound=StoredPath)


def listed(folder: P, pattern: str = "*") -> list[P]:
    """Returns the direct children of a folder, sorted by name; none if there is no such folder.

    Args:
        folder: the folder.
        pattern: pattern of the names, such as `part-*.parquet`.

    Raises:
        OSError: if the folder cannot be read. (`Path.glob` would return nothing, as for an empty
            folder, and a log that is unreachable must not look empty.)
    """
    try:
        found = [path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: path.name)


def store(
    path: StoredPath, write: Callable[[Path], object], *, patience_s: float = PATIENCE_S
) -> None:
    """Writes a file so that readers see the old content or the new, never part of it; retries while
    the storage is unreachable.

    Args:
        path: the file.
        write: writes the content to the path that it is passed; called again on a retry.
        patience_s: how long to retry.

    Raises:
        StorageError: if the file cannot be written.
    """

    def once() -> None:
        try:
            with path.written_aside() as aside:
                write(aside)
        except RuntimeError as error:  # raised by torch, and hides that the disk is full
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    with storage_errors(path.parent):
        patiently(once, patience_s=patience_s)


@contextlib.contextmanager
def storage_errors(folder: StoredPath) -> Iterator[None]:
    """Re-raises an OSError from writing to a folder as StorageError, with a hint."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StorageError(
            f"{folder} is not writable: {reason}. Free space or change its permissions, then run "
            "the same command again: everything logged so far is kept"
        ) from error
