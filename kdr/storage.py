"""Where everything lies under a storage folder. The one owner of paths, and of the way files are written: aside, then renamed."""

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdr.errors import StorageError


@dataclass(frozen=True)
class Storage:
    """The folders of one storage root.

    Args:
        root: an absolute folder; `Storage.at` makes it absolute, since Ray changes the working directory of trials.
    """

    root: Path

    @classmethod
    def at(cls, root: str | Path) -> "Storage":
        """The storage at `root`, `~` expanded and made absolute."""
        return cls(Path(root).expanduser().absolute())

    @property
    def log(self) -> Path:
        """The Parquet trial log: `{trials,epochs,arms}/study=<name>/part-*.parquet`."""
        return self.root / "log" / "v1"

    @property
    def quarantine(self) -> Path:
        """Damaged files of the log that were moved aside, each with the reason beside it."""
        return self.root / "log" / "quarantine"

    @property
    def data(self) -> Path:
        """Generated data sets and cached fingerprints."""
        return self.root / "data"

    @property
    def ray(self) -> Path:
        """Ray Tune's own files of a sweep; never read back by kdr."""
        return self.root / "ray"

    def trial(self, key: str) -> Path:
        """The folder of one trial: its checkpoint, and its student's weights if they are kept."""
        return self.root / "trials" / key

    def begin_anew(self, key: str) -> Path:
        """A mark that the next attempt at an excluded trial uses nothing of the earlier ones."""
        return self.trial(key) / "begin-anew"

    def cancellation(self, key: str) -> Path:
        """The request to end a running trial, with the reason; looked for after each epoch."""
        return self.trial(key) / "cancel"

    def teacher(self, teacher_id: str) -> Path:
        """What was measured of one teacher: feature statistics per data set."""
        return self.root / "teachers" / teacher_id

    def preflight(self, study: str) -> Path:
        """What the pre-flights of one study measured, and their pictures."""
        return self.root / "preflight" / study

    def search(self, study: str) -> Path:
        """The Optuna journal of one study's search, which `optuna-dashboard` opens."""
        return self.root / "searches" / f"{study}.journal"

    def loggers(self, study: str) -> Path:
        """Files of the loggers that one study asks for; never read by kdr."""
        return self.root / "loggers" / study

    def check_writable(self) -> None:
        """Raises StorageError unless a file can be written under the root; makes the root if it is missing."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"kdr")
        except OSError as error:
            raise StorageError(
                f"--storage: needs a folder that can be written, got {self.root} ({error.strerror}). "
                "Name another folder with --storage, or change its permissions"
            ) from error


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which takes its place once the block has ended without an error.

    The file reaches the disk before it is renamed, so a reader sees the old content or the new, never a part of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=f"-{_writer()}.tmp", dir=path.parent)
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


def remove_orphans(folder: Path) -> None:
    """Removes the temporary files that processes of this machine left in a folder when they were killed."""
    for path in folder.glob(f".*-{_HOST}-*.tmp"):
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
