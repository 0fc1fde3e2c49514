"""Files of a storage, on a file system or in an object store: written so that no reader sees a part
of one, listed, fetched.
"""

import contextlib
import fnmatch
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from kdr.errors import StorageError
from kdr.storage.object_store import ObjectPath
from kdr.storage.patience import PATIENCE_S, patiently

StoredPath = Path | ObjectPath
"""A file or folder of a storage: on a file system, or in an object store."""


def store(
    path: StoredPath, write: Callable[[Path], object], *, patience_s: float = PATIENCE_S
) -> None:
    """Writes a file so that a reader sees the old content or the new, never a part of it; waits for
    its storage if need be.

    Args:
        path: the file.
        write: writes the content to the path that it is given, if need be more than once.
        patience_s: how long to wait for a storage that cannot be reached.

    Raises:
        StorageError: if the file cannot be written.
    """

    def once() -> None:
        try:
            with written_aside(path) as aside:
                write(aside)
        except RuntimeError as error:  # what torch makes of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None

    with storage_errors(path.parent):
        patiently(once, patience_s=patience_s)


@contextlib.contextmanager
def storage_errors(folder: StoredPath) -> Iterator[None]:
    """Gives the system's errors of writing to a folder as StorageError, with the way out."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise StorageError(
            f"{folder}: must be a folder that can be written, got {reason}. Free space or change "
            "its permissions, then run the same command again: what is logged is kept"
        ) from error


@contextlib.contextmanager
def written_aside(path: StoredPath) -> Iterator[Path]:
    """Yields a temporary path of this machine, whose content takes its place at `path` once the
    block has ended without an error.

    A reader sees the old content or the new, never a part of it. On a file system it lies beside
    `path`, reaches the disk, and is renamed; into an object store it is sent in one request.
    """
    if isinstance(path, ObjectPath):
        with tempfile.TemporaryDirectory(prefix="kdr-") as folder:
            aside = Path(folder) / path.name
            aside.touch()
            yield aside
            path.upload(aside)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        prefix=f".{path.name}-", suffix=f"-{_writer()}.tmp", dir=path.parent
    )
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb+") as file:
            os.fsync(file.fileno())
        aside.chmod(0o666 & ~_umask())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def remove_orphans(folder: StoredPath) -> None:
    """Removes the temporary files that processes of this machine left in a folder when they were
    killed.
    """
    for path in listed(folder, f".*-{_HOST}-*.tmp") if isinstance(folder, Path) else ():
        pid = path.stem.rpartition("-")[2]
        if pid.isdigit() and not _is_alive(int(pid)):
            path.unlink(missing_ok=True)


_HOST = re.sub(r"[^A-Za-z0-9]+", "-", platform.node()) or "host"


def _writer() -> str:
    """Names this process in a temporary file, by which others see whether it still writes."""
    return f"{_HOST}-{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def listed(folder: StoredPath, pattern: str = "*") -> list[StoredPath]:
    """What lies directly in a folder, sorted by name; nothing if there is no such folder.

    Args:
        folder: the folder.
        pattern: of the names, such as `part-*.parquet`.

    Raises:
        OSError: if the folder cannot be read, which is no empty one. (`Path.glob` would not tell
            the two apart.)
    """
    try:
        found: list[StoredPath] = [
            path for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern)
        ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(found, key=lambda path: path.name)


def move(path: StoredPath, target: StoredPath) -> None:
    """Moves a file within its storage.

    Raises:
        FileNotFoundError: if it is not there.
    """
    if isinstance(path, Path) and isinstance(target, Path):
        path.replace(target)
    else:
        assert isinstance(path, ObjectPath)
        assert isinstance(target, ObjectPath)
        path.replace(target)


@contextlib.contextmanager
def fetched(path: StoredPath, *beside: str) -> Iterator[Path]:
    """A path of this machine with a file's content: the file itself, or a copy for as long as the
    block lasts.

    Args:
        path: the file.
        beside: names of files in its folder that are wanted, too, if they are there.

    Raises:
        FileNotFoundError: if there is no such file in an object store.
    """
    if isinstance(path, Path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="kdr-") as folder:
        copy = Path(folder) / path.name
        copy.write_bytes(path.read_bytes())
        for name in beside:
            with contextlib.suppress(FileNotFoundError):
                copy.with_name(name).write_bytes(path.with_name(name).read_bytes())
        yield copy


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
