"""What is wrong with the files and rows of the trial log; damaged files can be moved aside, nothing is deleted."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow.compute as pc

from kdr.errors import StorageError
from kdr.results.fragments import DamagedFragmentError, is_newer_version, list_folder, read_fragment, study_folders
from kdr.results.reader import Log, read_log
from kdr.results.schema import EVENTS, SCHEMAS, TableName
from kdr.storage import Storage, written_aside

Kind = Literal["damaged", "temporary", "newer", "contradiction", "unfinished"]
ORPHANED_AFTER_S = 600.0
"""Age at which a temporary file counts as left by a writer that was killed; writing one takes milliseconds."""


@dataclass(frozen=True)
class Finding:
    """One thing that a reader of the log should know."""

    kind: Kind
    where: str
    """A file, or a trial's key."""
    what: str
    """One sentence."""
    files: tuple[Path, ...] = field(default=(), repr=False)
    """What would be moved aside: damaged and orphaned files, a compaction together with its manifest."""

    @property
    def is_problem(self) -> bool:
        """Whether something is wrong; an unfinished trial is only told."""
        return self.kind != "unfinished"


def check_log(storage: Storage) -> tuple[Finding, ...]:
    """Reads every file of the log that counts, and every trial's events; problems first."""
    found = [
        finding for table in SCHEMAS for folder in study_folders(storage, table).values() for finding in _files(folder, table)
    ]
    log = read_log(storage)
    found += [*_newer_events(log), *_contradictions(log), *_unfinished(log)]
    return tuple(sorted(found, key=lambda finding: not finding.is_problem))


def quarantine(storage: Storage, finding: Finding) -> list[Path]:
    """Moves the files of a finding into the quarantine, the reason beside them, and says where they are now.

    Raises:
        StorageError: if they cannot be moved.
    """
    moved = []
    for path in finding.files:
        # a folder per file's old place, so that names cannot clash and it can be put back
        target = storage.quarantine / path.parent.relative_to(storage.root / "log") / path.name
        try:
            with written_aside(target.with_name(f"{target.name}.reason.txt")) as aside:
                aside.write_text(f"{finding.kind}: {finding.what}\nIt was {path}\n", encoding="utf-8")
            path.replace(target)
        except FileNotFoundError:
            continue  # a compaction has removed it meanwhile
        except OSError as error:
            raise StorageError(
                f"{path}: must be a file that can be moved to {target.parent}, got {error.strerror or error}. "
                "Change the permissions of the storage"
            ) from error
        moved.append(target)
    return moved


def _files(folder: Path, table: TableName) -> Iterator[Finding]:
    listing = list_folder(folder, table)
    for path in listing.damaged:
        yield from _damaged(path, "a compaction that cannot be read; the one before it, or the single files, count instead")
    for path in listing.fragments:
        try:
            read_fragment(path, table)
            if is_newer_version(path):
                yield Finding(
                    "newer", str(path), "was written by a newer version; columns that this one does not know are left out"
                )
        except FileNotFoundError:
            continue  # compacted meanwhile
        except DamagedFragmentError as error:
            yield from _damaged(path, " ".join(str(error).removeprefix(f"{path}: ").split()))
    for path in sorted(folder.glob("*.tmp")):
        age_s = _age_s(path)
        if age_s is not None and age_s > ORPHANED_AFTER_S:
            yield Finding("temporary", str(path), "was left by a writer that was killed; no reader looks at it", (path,))


def _damaged(path: Path, what: str) -> Iterator[Finding]:
    names = (path.with_suffix(".json"), path.with_suffix(".parquet")) if path.name.startswith("c-") else (path,)
    # a manifest goes first: without it, its data do not count
    files = tuple(name for name in names if name.exists())
    if files:
        yield Finding("damaged", str(path), what, files)


def _age_s(path: Path) -> float | None:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return None  # its writer has just renamed it


def _newer_events(log: Log) -> Iterator[Finding]:
    for row in log.trials.to_pylist():
        if row["event"] not in EVENTS:
            yield Finding("newer", row["key"], f"has an event {row['event']!r} of a newer version; it is passed over")


def _contradictions(log: Log) -> Iterator[Finding]:
    """Trials that were completed more than once, with different results, by the same code and not excluded in between."""
    ends: dict[str, list[dict[str, Any]]] = {}
    for row in log.trials.filter(pc.equal(log.trials["event"], "completed")).to_pylist():
        if row["attempt"] > log.excluded_attempts.get(row["key"], 0):
            ends.setdefault(row["key"], []).append(row)
    for key, rows in ends.items():
        rows.sort(key=lambda row: (row["attempt"], row["time"]))
        if len({row["AP"] for row in rows}) > 1:
            values = ", ".join(f"{row['AP']} (attempt {row['attempt']})" for row in rows)
            yield Finding(
                "contradiction", key, f"was completed {len(rows)} times with different AP: {values}. The last one counts"
            )


def _unfinished(log: Log) -> Iterator[Finding]:
    for state in log.states().values():
        if state.state in ("running", "interrupted"):
            what = (
                f"{state.state} at epoch {state.epoch} in the study {state.study}; if nothing runs it, the same command continues"
            )
            yield Finding("unfinished", state.key, what)
