"""Where everything lies under a storage, a folder or a place in an object store: the one owner of
paths.
"""

import os
import tempfile
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from kdr.errors import StorageError
from kdr.storage.files import StoredPath, storage_errors
from kdr.storage.object_store import ObjectPath
from kdr.storage.patience import BRIEF_S, PATIENCE_S

_LOCAL = "KDR_LOCAL"
"""The variable that names the folder for what must lie on this machine, where the storage is an
object store."""


def _plain(name: str) -> str:
    """A name that is one step of a path. Keys and studies may come from the log, whose files others
    may have written.

    Raises:
        StorageError: if it leads elsewhere.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise StorageError(
            f"{name!r}: must be a name without path characters. Look for what wrote it with `log "
            "check`"
        )
    return name


@dataclass(frozen=True)
class Storage:
    """The folders of one storage root.

    Args:
        root: an absolute folder, or a place in an object store; `Storage.at` makes a folder
            absolute, since Ray changes the working directory of trials.
    """

    root: StoredPath

    @classmethod
    def at(cls, root: str | Path, *, patience_s: float = BRIEF_S) -> "Storage":
        """The storage at `root`: a folder, `~` expanded and made absolute; or `s3://bucket/prefix`,
        `gs://bucket/prefix`.

        Args:
            root: where.
            patience_s: how long to wait for an object store that cannot be reached.

        Raises:
            StorageError: for another scheme, or a bucket that is not there or that the credentials
                do not open.
        """
        if "://" not in str(root):
            return cls(Path(root).expanduser().absolute())
        return cls(ObjectPath.at(str(root), patience_s=patience_s))

    def patient(self) -> "Storage":
        """The same storage as a run uses it, which waits for minutes where it cannot be reached."""
        return self if isinstance(self.root, Path) else Storage(self.root.with_patience(PATIENCE_S))

    @property
    def local(self) -> Path:
        """What must lie on this machine: of a folder it is the folder itself, of an object store a
        folder of its own here.
        """
        if isinstance(self.root, Path):
            return self.root
        folder = Path(os.environ.get(_LOCAL) or "~/.cache/kdr").expanduser().absolute()
        return folder / urllib.parse.quote(str(self.root), safe="")

    @property
    def log(self) -> StoredPath:
        """The Parquet trial log: `{trials,epochs,arms}/study=<name>/part-*.parquet`."""
        return self.root / "log" / "v1"

    def fragments(self, table: str, study: str) -> StoredPath:
        """The folder of one table of one study in the log."""
        return self.log / table / f"study={_plain(study)}"

    @property
    def quarantine(self) -> StoredPath:
        """Damaged files of the log and of trials that were moved aside, each with the reason beside
        it.
        """
        return self.root / "log" / "quarantine"

    @property
    def data(self) -> Path:
        """Generated data sets and cached fingerprints; on this machine, where another one makes the
        same again.
        """
        return self.local / "data"

    @property
    def ray(self) -> Path:
        """Ray's own files of a sweep, on this machine; never read back by kdr, whose checkpoints
        are its own.
        """
        return self.local / "ray"

    @property
    def trials(self) -> StoredPath:
        """The folders of all trials, by key."""
        return self.root / "trials"

    def trial(self, key: str) -> StoredPath:
        """The folder of one trial: its checkpoint, and its student's weights if they are kept."""
        return self.trials / _plain(key)

    def begin_anew(self, key: str) -> StoredPath:
        """A mark that the next attempt at an excluded trial uses nothing of the earlier ones."""
        return self.trial(key) / "begin-anew"

    def cancellation(self, key: str) -> StoredPath:
        """The request to end a running trial, with the reason; looked for after each epoch."""
        return self.trial(key) / "cancel"

    def micro_batch(self, key: str) -> StoredPath:
        """How many images of a trial fit into memory at a time, found by an attempt that ran out of
        it.
        """
        return self.trial(key) / "micro-batch"

    def forget_progress(self, key: str) -> None:
        """Removes what the next attempt at a trial would go on with."""
        self._remove(key, "checkpoint.pt", self.micro_batch(key).name)

    def forget_weights(self, key: str) -> None:
        """Removes what a trial has become, and what it would go on with."""
        self._remove(key, "student.pt", "student.json")
        self.forget_progress(key)

    def _remove(self, key: str, *names: str) -> None:
        with storage_errors(self.trial(key)):
            for name in names:
                (self.trial(key) / name).unlink(missing_ok=True)

    def lock(self, key: str) -> Path:
        """What processes of this machine lock that need the same teacher."""
        return self.local / "trials" / _plain(key) / "lock"

    def hang(self, key: str, rank: int | str) -> Path:
        """What a process of a trial was doing when it was ended since the trial hung; on its
        machine.
        """
        return self.local / "trials" / _plain(key) / f"hang-{rank}.txt"

    def teacher(self, teacher_id: str) -> StoredPath:
        """What was measured of one teacher: feature statistics per data set."""
        return self.root / "teachers" / _plain(teacher_id)

    @property
    def studies_with_drivers(self) -> StoredPath:
        """A folder for each study that a process runs, or has run."""
        return self.root / "drivers"

    def drivers(self, study: str) -> StoredPath:
        """The claims of the processes that run a study, or want to."""
        return self.studies_with_drivers / _plain(study)

    def preflight(self, study: str) -> StoredPath:
        """What the pre-flights of one study measured, and their pictures."""
        return self.root / "preflight" / _plain(study)

    def marks(self, check: str) -> StoredPath:
        """What each node of a cluster leaves for the others to read, while one check of the cluster
        lasts.
        """
        return self.root / f"check-{check}"

    def search(self, study: str) -> Path:
        """The Optuna journal of one study's search, which `optuna-dashboard` opens; on this
        machine, begun anew from the log.
        """
        return self.local / "searches" / f"{_plain(study)}.journal"

    def loggers(self, study: str) -> Path:
        """Files of the loggers that one study asks for, on this machine; never read by kdr."""
        return self.local / "loggers" / _plain(study)

    def name_of(self, path: StoredPath) -> str:
        """A file's name relative to the storage, as the log keeps it."""
        return str(path).removeprefix(f"{self.root}/")

    def check_writable(self) -> None:
        """Raises StorageError unless a file can be written under the root, and stays there; makes
        the root if it is missing.
        """
        if isinstance(self.root, ObjectPath):
            (self.root / "writable").write_bytes(b"kdr")
            return
        if "runtime_resources" in self.root.parts:
            raise StorageError(
                f"--storage: needs a folder that outlives the job, got {self.root}, among the "
                "files that Ray has unpacked for it and removes. Name a folder that every node "
                "mounts, with --storage or KDR_STORAGE"
            )
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root) as probe:
                probe.write(b"kdr")
        except OSError as error:
            raise StorageError(
                f"--storage: needs a folder that can be written, got {self.root} "
                f"({error.strerror}). Name another folder with --storage, or change its "
                "permissions"
            ) from error
