"""LocalPath: a file or folder on a file system, of this machine or mounted (NFS)."""

import contextlib
import fnmatch
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path, PosixPath
from typing import Self

from kdr.errors import StorageError

_HOST = re.sub(r"[^A-Za-z0-9]+", "-", platform.node()) or "host"


class LocalPath(PosixPath):
    """A `pathlib.Path` with the additional methods of `kdr.storage.files.StoredPath`, documented
    there.
    """

    appears_whole = False
    """A file that something else wrote, or a copy that was interrupted, may be cut off."""
    num_parallel_reads = 4
    """A local read hardly waits, so a few threads are enough."""

    @property
    def local_folder(self) -> "LocalPath":
        """The folder itself."""
        return self

    @contextlib.contextmanager
    def written_aside(self) -> Iterator[Path]:
        """Writes beside the file, then syncs and renames. Both names are in one folder, because a
        rename is atomic only within a file system.
        """
        self.parent.mkdir(parents=True, exist_ok=True)
        # `remove_orphans` and the log's readers recognise the suffix
        handle, name = tempfile.mkstemp(
            prefix=f".{self.name}-", suffix=f"-{_writer()}.tmp", dir=self.parent
        )
        os.close(handle)
        aside = Path(name)
        try:
            yield aside
            # without fsync, a power cut after the rename may leave an empty file under the final
            # name
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner can read
            aside.replace(self)
        finally:
            aside.unlink(missing_ok=True)

    @contextlib.contextmanager
    def fetched(self, *_beside: str) -> Iterator[Path]:
        """Yields the file itself: its neighbours are already beside it."""
        yield self

    def arrow_source(self) -> Path:
        """Returns the file itself, of which pyarrow reads only the columns that it needs."""
        return self

    def expose_at(self, place: Path) -> None:
        """Links the folder to `place`; does nothing if there is no folder."""
        if self.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(self, target_is_directory=True)

    def age_s(self) -> float:
        """Returns the seconds since the file was last written, by this machine's clock."""
        return time.time() - self.stat().st_mtime

    def remove_orphans(self) -> None:
        """Removes temporary files whose process no longer runs. Those of other machines stay:
        whether their process runs is unknown here.
        """
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in sorted(self.iterdir()):
                pid = path.stem.rpartition("-")[2]
                is_ours = fnmatch.fnmatchcase(path.name, f".*-{_HOST}-*.tmp") and pid.isdigit()
                if is_ours and not _is_alive(int(pid)):
                    path.unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Raises StorageError unless a file can be written here and outlives the job; creates the
        folder if missing.
        """
        # Ray unpacks a job's working_dir there, and removes it with everything in it afterwards
        if "runtime_resources" in self.parts:
            raise StorageError(
                f"--storage: must be a folder that outlives the job, got {self}, which Ray "
                "unpacked for the job and removes after it. Name a folder that every node mounts, "
                "with --storage or KDR_STORAGE"
            )
        try:
            self.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self) as probe:
                probe.write(b"kdr")
        except OSError as error:
            raise StorageError(
                f"--storage: must be a writable folder, got {self} ({error.strerror}). Name "
                "another folder with --storage, or change its permissions"
            ) from error

    def with_patience(self, patience_s: float) -> Self:  # noqa: ARG002
        """Returns the same path: how long a read waits here is up to the file system, and writes
        are retried by `kdr.storage.files.store`.
        """
        return self


def _writer() -> str:
    """Returns this process's part of temporary file names; others check whether it still runs."""
    return f"{_HOST}-{os.getpid()}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    # the only way to read it is to set it
    mask = os.umask(0)
    os.umask(mask)
    return mask
