"""Storage, the paths of everything under a storage root, in a folder or an object store."""

from dataclasses import dataclass
from pathlib import Path

from kdr.errors import StorageError
from kdr.storage.files import StoredPath, storage_errors
from kdr.storage.local_path import LocalPath
from kdr.storage.object_store import ObjectPath
from kdr.storage.patience import BRIEF_S, PATIENCE_S


def _plain(name: str) -> str:
    """Returns a name after checking that it is a single path component.

    Keys and study names are read from the log, whose files anyone with access may have written: a
    key such as `../../etc` must not lead out of the storage.

    Raises:
        StorageError: if it is not a single path component.
    """
    if name in ("", ".", "..") or any(mark in name for mark in "/\\\0"):
        raise StorageError(
            f"{name!r}: must be a name without path characters. Find the file that contains it "
            "with `kdr log check`"
        )
    return name


@dataclass(frozen=True)
class Storage:
    """The paths under one storage root.

    Args:
        root: an absolute folder, or a prefix in an object store. `Storage.at` makes a folder
            absolute, because Ray changes the working directory of trials.
    """

    root: StoredPath

    @classmethod
    def at(cls, root: str | Path, *, patience_s: float = BRIEF_S) -> "Storage":
        """Returns the storage at `root`.

        Args:
            root: a folder, in which `~` is expanded; or `s3://bucket/prefix`, `gs://bucket/prefix`.
            patience_s: how long to retry while an object store is unreachable.

        Raises:
            StorageError: for another scheme, or a bucket that does not exist or is not accessible
                with these credentials.
        """
        if "://" not in str(root):
            # the shell does not expand the `~` of --storage=~/runs
            return cls(LocalPath(root).expanduser().absolute())
        return cls(ObjectPath.at(str(root), patience_s=patience_s))

    def patient(self) -> "Storage":
        """Returns the same storage with the retries of a run: for minutes, not seconds."""
        return Storage(self.root.with_patience(PATIENCE_S))

    @property
    def local(self) -> LocalPath:
        """The folder for files that must stay on this machine: the root itself if it is a folder,
        otherwise a folder of its own.
        """
        return self.root.local_folder

    @property
    def log(self) -> StoredPath:
        """The Parquet trial log: `{trials,epochs,arms}/study=<name>/part-*.parquet`."""
        return self.root / "log" / "v1"

    def fragments(self, table: str, study: str) -> StoredPath:
        """Returns the folder of one table of one study in the log."""
        return self.log / table / f"study={_plain(study)}"

    @property
    def quarantine(self) -> StoredPath:
        """Damaged and foreign files that were moved aside, each with the reason beside it."""
        return self.root / "log" / "quarantine"

    @property
    def data(self) -> LocalPath:
        """Generated data sets and cached fingerprints. They are on this machine, because every
        machine generates the same ones.
        """
        return self.local / "data"

    @property
    def ray(self) -> LocalPath:
        """Ray's own files of a sweep, on this machine; kdr has checkpoints of its own and never
        reads these.
        """
        return self.local / "ray"

    @property
    def trials(self) -> StoredPath:
        """The folders of all trials, by key."""
        return self.root / "trials"

    def trial(self, key: str) -> StoredPath:
        """Returns a trial's folder: its checkpoint, and its student's weights if they are kept."""
        return self.trials / _plain(key)

    def restart_marker(self, key: str) -> StoredPath:
        """Returns the marker file that restarts an excluded trial from scratch."""
        return self.trial(key) / "restart"

    def cancellation(self, key: str) -> StoredPath:
        """Returns the file that asks a running trial to end, with the reason; read after each
        epoch.
        """
        return self.trial(key) / "cancel"

    def micro_batch(self, key: str) -> StoredPath:
        """Returns the file with the micro-batch of a trial that fits into memory, as found by an
        attempt that ran out of it.
        """
        return self.trial(key) / "micro-batch"

    def forget_progress(self, key: str) -> None:
        """Removes everything the next attempt at a trial would resume from."""
        self._remove(key, "checkpoint.pt", self.micro_batch(key).name)

    def forget_weights(self, key: str) -> None:
        """Removes a trial's weights, and everything it would resume from."""
        # the sidecar last: weights without one would count as kept, but could not be opened
        self._remove(key, "student.pt", "student.json")
        self.forget_progress(key)

    def _remove(self, key: str, *names: str) -> None:
        with storage_errors(self.trial(key)):
            for name in names:
                (self.trial(key) / name).unlink(missing_ok=True)

    def lock(self, key: str) -> LocalPath:
        """Returns the lock file for processes of this machine that need the same teacher."""
        return self.local / "trials" / _plain(key) / "lock"

    def hang(self, key: str, rank: int | str) -> LocalPath:
        """Returns the file for the stacks of a process that hung; on the process's machine."""
        return self.local / "trials" / _plain(key) / f"hang-{rank}.txt"

    def teacher(self, teacher_id: str) -> StoredPath:
        """Returns the folder with one teacher's feature statistics and AP per data set."""
        return self.root / "teachers" / _plain(teacher_id)

    @property
    def studies_with_drivers(self) -> StoredPath:
        """A folder for each study that has, or had, a driver."""
        return self.root / "drivers"

    def drivers(self, study: str) -> StoredPath:
        """Returns the folder with the claims of a study's driver and of its competitors."""
        return self.studies_with_drivers / _plain(study)

    def preflight(self, study: str) -> StoredPath:
        """Returns the folder with the measurements and pictures of one study's pre-flights."""
        return self.root / "preflight" / _plain(study)

    def marks(self, check: str) -> StoredPath:
        """Returns the folder for files that the nodes of a cluster write for each other during one
        check.
        """
        return self.root / f"check-{check}"

    def search(self, study: str) -> LocalPath:
        """Returns the Optuna journal of one study's search, which `optuna-dashboard` opens. It is
        on this machine, because it can be rebuilt from the log.
        """
        return self.local / "searches" / f"{_plain(study)}.journal"

    def loggers(self, study: str) -> LocalPath:
        """Returns the folder for one study's loggers (TensorBoard and others), on this machine; kdr
        never reads it.
        """
        return self.local / "loggers" / _plain(study)

    def output(self, study: str) -> LocalPath:
        """Returns the file with the output of one study's background runs, on this machine."""
        return self.local / "output" / f"{_plain(study)}.log"

    def name_of(self, path: StoredPath) -> str:
        """Returns a file's path relative to the storage, as the log stores it: the storage may be
        moved.
        """
        return str(path).removeprefix(f"{self.root}/")

    def check_writable(self) -> None:
        """Raises StorageError unless files can be written under the root; creates it if missing."""
        self.root.check_writable()
