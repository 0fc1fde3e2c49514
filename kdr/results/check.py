"""What is wrong with files and rows of the trial log, and with trials' weights; files can be moved
aside, nothing is deleted.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow.compute as pc

from kdr.errors import StorageError
from kdr.results.fragments import (
    DamagedFragmentError,
    is_newer_version,
    is_of_log,
    list_folder,
    read_fragment,
    study_folders,
)
from kdr.results.reader import Log, read_log
from kdr.results.saved_weights import what_is_torn
from kdr.results.schema import EVENTS, SCHEMAS, TableName
from kdr.storage.files import StoredPath, listed
from kdr.storage.layout import Storage

Kind = Literal[
    "damaged", "temporary", "foreign", "newer", "contradiction", "incomplete", "unfinished"
]
ORPHANED_AFTER_S = 600.0
"""Age at which a temporary file counts as left by a writer that was killed; writing one takes
milliseconds."""


@dataclass(frozen=True)
class LogProblem:
    """One thing that a reader of the log should know."""

    kind: Kind
    where: str
    """A file, or a trial's key."""
    what: str
    """One sentence."""
    files: tuple[StoredPath, ...] = field(default=(), repr=False)
    """What would be moved aside: damaged, orphaned and foreign files, a compaction together with
    its manifest."""

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong; what is only told are unfinished trials, and curves with
        gaps.
        """
        return self.kind not in ("incomplete", "unfinished")


def check_log(storage: Storage) -> tuple[LogProblem, ...]:
    """Reads every file of the log that counts, every trial's events, and the checkpoints; problems
    first.
    """
    folders = [
        (table, folder) for table in SCHEMAS for folder in study_folders(storage, table).values()
    ]
    found = [finding for table, folder in folders for finding in _files(folder, table)]
    found += [*_foreign(storage, [folder for _, folder in folders]), *_weights(storage)]
    log = read_log(storage)
    found += [*_newer_events(log), *_contradictions(log), *_gaps(log), *_unfinished(log)]
    return tuple(sorted(found, key=lambda finding: not finding.is_problem))


def quarantine(storage: Storage, finding: LogProblem) -> list[StoredPath]:
    """Moves the files of a finding into the quarantine, the reason beside them, and says where they
    are now.

    Raises:
        StorageError: if they cannot be moved.
    """
    moved = []
    for path in finding.files:
        # a folder per file's old place, so that names cannot clash and it can be put back
        target = storage.quarantine / storage.name_of(path).removeprefix("log/")
        try:
            with target.with_name(f"{target.name}.reason.txt").written_aside() as aside:
                aside.write_text(
                    f"{finding.kind}: {finding.what}\nIt was {path}\n", encoding="utf-8"
                )
            path.replace(target)
        except FileNotFoundError:
            continue  # a compaction has removed it meanwhile
        except OSError as error:
            raise StorageError(
                f"{path}: must be a file that can be moved to {target.parent}, got "
                f"{error.strerror or error}. Change the permissions of the storage"
            ) from error
        moved.append(target)
    return moved


def _files(folder: StoredPath, table: TableName) -> Iterator[LogProblem]:
    listing = list_folder(folder, table)
    for path in listing.damaged:
        yield from _damaged(
            path,
            "a compaction that cannot be read; the one before it, or the single files, count "
            "instead",
        )
    for path in listing.fragments:
        try:
            read_fragment(path, table)
            if is_newer_version(path):
                yield LogProblem(
                    "newer",
                    str(path),
                    "was written by a newer version; columns that this one does not know are "
                    "left out",
                )
        except FileNotFoundError:
            continue  # compacted meanwhile
        except DamagedFragmentError as error:
            yield from _damaged(path, " ".join(str(error).removeprefix(f"{path}: ").split()))
    yield from _left_over(folder)


def _left_over(folder: StoredPath) -> Iterator[LogProblem]:
    for path in listed(folder, "*.tmp"):
        with contextlib.suppress(FileNotFoundError):  # its writer has just renamed it
            if path.age_s() > ORPHANED_AFTER_S:
                yield LogProblem(
                    "temporary",
                    str(path),
                    "was left by a writer that was killed; no reader looks at it",
                    (path,),
                )


def _foreign(storage: Storage, folders: Collection[StoredPath]) -> Iterator[LogProblem]:
    """What lies in the log and is no part of it. Readers pass it over."""
    tables = [storage.log / table for table in SCHEMAS]
    wanted: list[tuple[StoredPath, Callable[[StoredPath], bool]]] = [
        (storage.log, tables.__contains__)
    ]
    wanted += [(table, folders.__contains__) for table in tables]
    wanted += [(folder, lambda path: is_of_log(path.name)) for folder in folders]
    for folder, belongs in wanted:
        for path in listed(folder):
            if not belongs(path):
                yield LogProblem(
                    "foreign", str(path), "is no part of the log; no reader looks at it", (path,)
                )


def _weights(storage: Storage) -> Iterator[LogProblem]:
    """Checkpoints that no trial can go on from, and weights that cannot be opened."""
    for folder in listed(storage.trials):
        for name, then in _TORN:
            # there is none, or its trial has just ended
            with contextlib.suppress(FileNotFoundError):
                if (
                    what := what_is_torn(folder / name, read_all=name == "checkpoint.pt")
                ) is not None:
                    yield LogProblem(
                        "damaged", str(folder / name), f"{what}; {then}", (folder / name,)
                    )
        yield from _left_over(folder)


_TORN = (
    ("checkpoint.pt", "the next attempt at its trial moves it aside and begins anew"),
    (
        "student.pt",
        "once it is moved aside, a teacher is trained again; the trial's result stays in the log",
    ),
)


def _damaged(path: StoredPath, what: str) -> Iterator[LogProblem]:
    names = (
        (path.with_suffix(".json"), path.with_suffix(".parquet"))
        if path.name.startswith("c-")
        else (path,)
    )
    # a manifest goes first: without it, its data do not count
    files = tuple(name for name in names if name.exists())
    if files:
        yield LogProblem("damaged", str(path), what, files)


def _newer_events(log: Log) -> Iterator[LogProblem]:
    for row in log.trials.to_pylist():
        if row["event"] not in EVENTS:
            yield LogProblem(
                "newer",
                row["key"],
                f"has an event {row['event']!r} of a newer version; it is passed over",
            )


def _contradictions(log: Log) -> Iterator[LogProblem]:
    """Trials that were completed more than once, with different results, by the same code and not
    excluded in between.
    """
    ends: dict[str, list[dict[str, Any]]] = {}
    for row in log.trials.filter(pc.equal(log.trials["event"], "completed")).to_pylist():
        if row["attempt"] > log.excluded_attempts.get(row["key"], 0):
            ends.setdefault(row["key"], []).append(row)
    for key, rows in ends.items():
        rows.sort(key=lambda row: (row["attempt"], row["time"]))
        if len({row["AP"] for row in rows}) > 1:
            values = ", ".join(f"{row['AP']} (attempt {row['attempt']})" for row in rows)
            yield LogProblem(
                "contradiction",
                key,
                f"was completed {len(rows)} times with different AP: {values}. The last one counts",
            )


def _gaps(log: Log) -> Iterator[LogProblem]:
    """Trials with a result of which epochs are missing, as after a damaged file was moved aside."""
    counts = log.current_epochs.group_by("key").aggregate([("epoch", "count")]).to_pydict()
    num_epochs = dict(zip(counts["key"], counts["epoch_count"], strict=True))
    for state in log.states().values():
        found = num_epochs.get(state.key, 0)
        if state.state in ("completed", "stopped_early") and found < state.epoch:
            what = (
                f"was {state.state} at epoch {state.epoch}, of which the log has {found}: its "
                "result counts, its curve has gaps. `log exclude KEY` trains it again"
            )
            yield LogProblem("incomplete", state.key, what)


def _unfinished(log: Log) -> Iterator[LogProblem]:
    for state in log.states().values():
        if state.state in ("running", "interrupted"):
            what = (
                f"{state.state} at epoch {state.epoch} in the study {state.study}; if nothing runs "
                "it, the same command continues"
            )
            yield LogProblem("unfinished", state.key, what)
