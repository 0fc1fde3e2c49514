"""Checks the trial log and the trials' weights, and quarantines damaged files; deletes nothing."""

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
from kdr.results.saved_weights import file_damage
from kdr.results.schema import EVENTS, SCHEMAS, TableName
from kdr.storage.files import StoredPath, listed
from kdr.storage.layout import Storage

Kind = Literal[
    "damaged", "temporary", "foreign", "newer", "contradiction", "incomplete", "unfinished"
]
ORPHANED_AFTER_S = 600.0
"""Age at which a temporary file counts as left by a killed writer; writing one takes
milliseconds."""


@dataclass(frozen=True)
class LogProblem:
    """A finding about the log or a trial's weights."""

    kind: Kind
    where: str
    """A file, or a trial's key."""
    what: str
    """One sentence."""
    files: tuple[StoredPath, ...] = field(default=(), repr=False)
    """Files to quarantine: damaged, orphaned or foreign files, or a compaction with its
    manifest."""

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong. Unfinished trials and curves with gaps are only reported."""
        return self.kind not in ("incomplete", "unfinished")


def check_log(storage: Storage) -> tuple[LogProblem, ...]:
    """Reads every file of the log and every checkpoint. Returns the findings, problems first."""
    folders = [
        (table, folder) for table in SCHEMAS for folder in study_folders(storage, table).values()
    ]
    found = [finding for table, folder in folders for finding in _files(folder, table)]
    found += [*_foreign(storage, [folder for _, folder in folders]), *_weights(storage)]
    log = read_log(storage)
    found += [*_newer_events(log), *_contradictions(log), *_gaps(log), *_unfinished(log)]
    return tuple(sorted(found, key=lambda finding: not finding.is_problem))


def quarantine(storage: Storage, finding: LogProblem) -> list[StoredPath]:
    """Moves the files of a finding into the quarantine, and writes the reason beside them.

    Returns:
        Their new paths.

    Raises:
        StorageError: if they cannot be moved.
    """
    moved = []
    for path in finding.files:
        # in the same folders as before, so that names cannot clash and a file can be put back
        target = storage.quarantine / storage.name_of(path).removeprefix("log/")
        try:
            with target.with_name(f"{target.name}.reason.txt").written_aside() as aside:
                aside.write_text(
                    f"{finding.kind}: {finding.what}\nIt was {path}\n", encoding="utf-8"
                )
            path.replace(target)
        except FileNotFoundError:
            continue  # a compaction has removed it in the meantime
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be moved to {target.parent} ({error.strerror or error}). Check "
                "the permissions of the storage"
            ) from error
        moved.append(target)
    return moved


def _files(folder: StoredPath, table: TableName) -> Iterator[LogProblem]:
    listing = list_folder(folder, table)
    for path in listing.damaged:
        yield from _damaged(
            path,
            "is an unreadable compaction; the previous one or the single files count instead",
        )
    for path in listing.fragments:
        try:
            read_fragment(path, table)
            if is_newer_version(path):
                yield LogProblem(
                    "newer",
                    str(path),
                    "was written by a newer version of kdr; unknown columns are ignored",
                )
        except FileNotFoundError:
            continue  # compacted in the meantime
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
                    "was left by a killed writer; readers ignore it",
                    (path,),
                )


def _foreign(storage: Storage, folders: Collection[StoredPath]) -> Iterator[LogProblem]:
    """Yields the files and folders that do not belong to the log. Readers ignore them."""
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
                    "foreign", str(path), "does not belong to the log; readers ignore it", (path,)
                )


def _weights(storage: Storage) -> Iterator[LogProblem]:
    """Yields damaged checkpoints and weights."""
    for folder in listed(storage.trials):
        for name, then in _TORN:
            # The file does not exist, or was deleted just now because its trial ended.
            with contextlib.suppress(FileNotFoundError):
                if (
                    what := file_damage(folder / name, read_all=name == "checkpoint.pt")
                ) is not None:
                    yield LogProblem(
                        "damaged", str(folder / name), f"{what}; {then}", (folder / name,)
                    )
        yield from _left_over(folder)


_TORN = (
    ("checkpoint.pt", "the next attempt quarantines it and starts over"),
    (
        "student.pt",
        "once it is quarantined, a teacher is trained again; the trial's result stays in the log",
    ),
)
"""File of a trial -> what happens if it is damaged."""


def _damaged(path: StoredPath, what: str) -> Iterator[LogProblem]:
    names = (
        (path.with_suffix(".json"), path.with_suffix(".parquet"))
        if path.name.startswith("c-")
        else (path,)
    )
    # the manifest first: without it, its data is ignored, and the files that it replaces count
    # again
    files = tuple(name for name in names if name.exists())
    if files:
        yield LogProblem("damaged", str(path), what, files)


def _newer_events(log: Log) -> Iterator[LogProblem]:
    for row in log.trials.to_pylist():
        if row["event"] not in EVENTS:
            yield LogProblem(
                "newer",
                row["key"],
                f"has an event {row['event']!r} from a newer version of kdr, which is ignored",
            )


def _contradictions(log: Log) -> Iterator[LogProblem]:
    """Yields the trials that completed more than once with different results, without an exclusion
    in between.
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
                f"completed {len(rows)} times with different AP: {values}. The last one counts",
            )


def _gaps(log: Log) -> Iterator[LogProblem]:
    """Yields the trials with a result but missing epochs, as after a damaged file was
    quarantined.
    """
    counts = log.current_epochs.group_by("key").aggregate([("epoch", "count")]).to_pydict()
    num_epochs = dict(zip(counts["key"], counts["epoch_count"], strict=True))
    for state in log.states().values():
        found = num_epochs.get(state.key, 0)
        if state.state in ("completed", "stopped_early") and found < state.epoch:
            what = (
                f"was {state.state} at epoch {state.epoch}, but the log has {found} epochs: its "
                "result counts, its curve has gaps. To train it again: `kdr log exclude KEY`"
            )
            yield LogProblem("incomplete", state.key, what)


def _unfinished(log: Log) -> Iterator[LogProblem]:
    for state in log.states().values():
        if state.state in ("running", "interrupted"):
            what = (
                f"{state.state} at epoch {state.epoch} in the study {state.study}; unless it is "
                "running now, the study's command resumes it"
            )
            yield LogProblem("unfinished", state.key, what)
