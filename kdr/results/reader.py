"""Reads the trial log, and determines each trial's state. Damaged files do not stop it."""

import json
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kdr.config.renamed import present_names
from kdr.results.current_rows import (
    current_rows,
    current_trials,
    deciding_rows,
    excluded_attempts,
    first_of_each,
    last_draws,
)
from kdr.results.fragments import (
    DamagedFragmentError,
    Listing,
    list_folder,
    read_fragment,
    study_folders,
)
from kdr.results.schema import EVENTS, METRICS, SCHEMAS, TableName, TrialEvent, to_events
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage

State = Literal[
    "planned",
    "running",
    "interrupted",
    "failed",
    "stopped_early",
    "completed",
    "cancelled",
    "excluded",
]
_STATES: dict[str, State] = {
    "planned": "planned",
    "started": "running",
    "resumed": "running",
    "interrupted": "interrupted",
    "failed": "failed",
    "stopped_early": "stopped_early",
    "completed": "completed",
    "cancelled": "cancelled",
    "excluded": "excluded",
}
_LISTINGS = 5
"""Maximum number of times to list a folder, if compactions delete its files before they are
read."""


@dataclass(frozen=True)
class TrialState:
    """The state of a trial according to the log."""

    key: str
    state: State
    attempt: int
    epoch: int
    """Last finished epoch; 0 before the first is finished."""
    metrics: dict[str, float | None]
    """AP to APl of the last evaluated epoch."""
    parameters: str | None
    """The last draw of a search that proposed this trial, as JSON."""
    last: TrialEvent
    """The deciding event, with provenance, failure, reason and weights."""

    @property
    def study(self) -> str:
        """The study that last ran the trial."""
        return self.last.study

    @property
    def role(self) -> str:
        """`student` or `teacher`."""
        return self.last.role

    @property
    def seed(self) -> int:
        """The trial's seed."""
        return self.last.seed

    @property
    def config(self) -> str:
        """The resolved TrialConfig as JSON."""
        return self.last.config

    @property
    def seconds(self) -> float | None:
        """Training time so far, over all attempts."""
        return self.last.seconds


@dataclass(frozen=True)
class Log:
    """The rows of the log as three Arrow tables: a snapshot, without rows written later."""

    trials: pa.Table
    """Every event (`TrialEvent`)."""
    epochs: pa.Table
    """Every epoch of every attempt (`EpochRow`)."""
    arms: pa.Table
    """The trials that each study uses (`ArmRow`)."""
    damaged: tuple[StoredPath, ...] = ()
    """Files that were skipped: truncated, or without rows of the log."""

    def states(self) -> dict[str, TrialState]:
        """Returns the state of each trial by key, decided by the last event of its last attempt."""
        return self._states

    @cached_property
    def used_keys(self) -> pa.Table:
        """`study` and `key` of the trials that each study uses, even if another study ran them.

        Sorted by study; arms first, in the order of the log.
        """
        rows = pa.concat_tables(
            [table.select(["study", "key"]) for table in (self.arms, self.trials)]
        )
        return first_of_each(rows, "study", "key").sort_by(
            [("study", "ascending"), ("row", "ascending")]
        )

    def studies(self) -> tuple[str, ...]:
        """Returns the names of all studies, sorted."""
        return tuple(pc.unique(self.used_keys["study"]).to_pylist())

    def keys_of(self, study: str) -> tuple[str, ...]:
        """Returns the keys of the trials that a study uses, in the order of `used_keys`."""
        return tuple(
            self.used_keys.filter(pc.equal(self.used_keys["study"], study))["key"].to_pylist()
        )

    def states_of(self, study: str) -> dict[str, TrialState]:
        """Returns the states of the trials that a study uses, except arms without an event yet."""
        return {key: self._states[key] for key in self.keys_of(study) if key in self._states}

    def arms_of(self, study: str) -> list[dict[str, Any]]:
        """Returns the study's rows of the table `arms`: the last row of each (arm, key), in order
        of first appearance.
        """
        return list(self._arms.get(study, {}).values())

    def study_content(self, study: str) -> dict[str, Any]:
        """Returns the study file of the last run as plain values, with the present names of
        settings; empty if the log does not have it.
        """
        rows = [row for row in self.arms_of(study) if row["study_config"]]
        newest = max(rows, key=lambda row: row["time"], default={"study_config": "{}"})
        return present_names(json.loads(newest["study_config"])).content

    def ablation_arms_of(self, study: str) -> list[dict[str, Any]]:
        """Returns the rows of an ablation's arms as of its last run, without arms and seeds that
        its file no longer has.
        """
        rows = [row for row in self.arms_of(study) if row["levels"] is not None]
        newest = max(rows, key=lambda row: row["time"], default={"study_config": None})
        return [row for row in rows if row["study_config"] == newest["study_config"]]

    @property
    def newest_arm(self) -> datetime | None:
        """Time of the newest row of the table `arms`, of any study."""
        newest: datetime | None = pc.max(self.arms["time"]).as_py()
        return newest

    def epochs_of(self, key: str) -> pa.Table:
        """Returns the epochs of a trial in order, without those that a later attempt repeated."""
        return self.current_epochs.filter(pc.equal(self.current_epochs["key"], key))

    @cached_property
    def current_epochs(self) -> pa.Table:
        """The epochs that count, of all trials, by key and epoch.

        An attempt that starts at epoch e replaces earlier epochs from e on. Excluded attempts, and
        those before them, do not count.
        """
        return self.epochs.take(current_rows(self.epochs, self.excluded_attempts))

    @cached_property
    def excluded_attempts(self) -> dict[str, int]:
        """Key -> last attempt that does not count; earlier ones do not count either."""
        return excluded_attempts(self.trials)

    @cached_property
    def _arms(self) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
        """Study -> (arm, key) -> the last row of the table `arms`, in order of first appearance."""
        arms: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        for row in sorted(_arm_rows(self.arms), key=lambda row: row["time"]):
            arms.setdefault(row["study"], {})[row["arm"], row["key"]] = row
        return arms

    @cached_property
    def deciding_events(self) -> pa.Table:
        """The event that decides the state of each trial, in the order of the log."""
        return self._events.take(
            pa.array(deciding_rows(self._events, self.excluded_attempts), pa.int64())
        )

    @cached_property
    def current_trials(self) -> pa.Table:
        """The other columns of each trial's state (see `TrialState`), a row for each of
        `deciding_events`.
        """
        deciding = self.deciding_events
        known = current_trials(deciding, last_draws(self._events), self.current_epochs)
        return known.append_column(
            "state",
            pa.array([_STATES[event] for event in deciding["event"].to_pylist()], pa.string()),
        )

    @cached_property
    def _events(self) -> pa.Table:
        return self.trials.filter(pc.is_in(self.trials["event"], value_set=pa.array(EVENTS)))

    @cached_property
    def _states(self) -> dict[str, TrialState]:
        # both have one row per trial, in the same order
        events, known = to_events(self.deciding_events), self.current_trials.to_pylist()
        return {event.key: _state(event, row) for event, row in zip(events, known, strict=True)}


def known_keys(log: Log) -> frozenset[str]:
    """Returns the keys of completed trials, which no study needs to run again."""
    return frozenset(key for key, state in log.states().items() if state.state == "completed")


def read_log(storage: Storage, study: str | None = None, *, leave_out: Collection[str] = ()) -> Log:
    """Reads the log. A log that does not exist yet is empty.

    Args:
        storage: where the log is.
        study: read only the trials that this study ran or uses, including other studies' rows of
            them.
        leave_out: columns of the table `epochs` not to read, such as `losses`; their values are
            null.
    """
    with ThreadPoolExecutor(max_workers=storage.root.num_parallel_reads) as pool:
        reading = _Reading(storage, pool.map, leave_out)
        tables = (
            {name: reading.table(name) for name in SCHEMAS}
            if study is None
            else _tables_of(reading, study)
        )
    return Log(**tables, damaged=tuple(reading.damaged))


def _tables_of(reading: "_Reading", study: str) -> dict[TableName, pa.Table]:
    """Returns the rows of a study, and other studies' rows of the same keys. Of other studies'
    files without these keys, only the keys are read.
    """
    others = [name for name in reading.studies("trials") if name != study]
    arms, trials = reading.table("arms", [study]), reading.table("trials", [study])
    keys = pc.unique(pa.chunked_array([*arms["key"].chunks, *trials["key"].chunks], pa.string()))
    elsewhere = reading.table("trials", others, keys)
    # a study writes an event of a trial before any epoch of it, so only these studies have epochs
    ran_in = pc.unique(elsewhere["study"]).to_pylist()
    epochs = [reading.table("epochs", [study]), reading.table("epochs", ran_in, keys)]
    return {
        "trials": _joined_tables(trials, elsewhere),
        "epochs": _joined_tables(*epochs),
        "arms": arms,
    }


def _joined_tables(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


@dataclass
class _Reading:
    """One pass over the log, which collects damaged files."""

    storage: Storage
    run: Callable[..., Iterator[Any]]
    leave_out: Collection[str]
    damaged: list[StoredPath] = field(default_factory=list)

    def studies(self, name: TableName) -> list[str]:
        """Returns the studies that have a folder of a table."""
        return list(study_folders(self.storage, name))

    def table(
        self, name: TableName, studies: Collection[str] | None = None, keys: pa.Array | None = None
    ) -> pa.Table:
        """Returns the rows of a table, of all or some studies, and of all or some trials."""
        left_out = self.leave_out if name == "epochs" else ()
        folders = [
            folder
            for study, folder in study_folders(self.storage, name).items()
            if studies is None or study in studies
        ]
        listings = dict[StoredPath, Listing]()
        results = dict[StoredPath, pa.Table | Exception]()
        to_list = folders
        # A file may be gone between listing and reading, because a compaction has merged it. Then
        # its folder is listed again, which finds the merged file.
        for _ in range(_LISTINGS):
            listings |= zip(
                to_list, self.run(lambda folder: list_folder(folder, name), to_list), strict=True
            )
            paths = [path for folder in to_list for path in listings[folder].fragments]
            results |= zip(
                paths,
                self.run(lambda path: _read_or_reason(path, name, keys, left_out), paths),
                strict=True,
            )
            vanished = {
                path for path, found in results.items() if isinstance(found, FileNotFoundError)
            }
            to_list = [
                folder for folder in to_list if not vanished.isdisjoint(listings[folder].fragments)
            ]
            if not to_list:
                break
        read = {path: results[path] for folder in folders for path in listings[folder].fragments}
        self.damaged += [path for folder in folders for path in listings[folder].damaged]
        self.damaged += [path for path, found in read.items() if isinstance(found, Exception)]
        return _joined_tables(
            SCHEMAS[name].empty_table(),
            *(found for found in read.values() if isinstance(found, pa.Table)),
        )


def _read_or_reason(
    path: StoredPath, name: TableName, keys: pa.Array | None, leave_out: Collection[str]
) -> pa.Table | Exception:
    try:
        return read_fragment(path, name, keys, leave_out)
    except (DamagedFragmentError, FileNotFoundError) as error:
        return error


def _arm_rows(arms: pa.Table) -> list[dict[str, Any]]:
    """Returns rows as Python values. All rows of a run share one string for their study, because it
    is long and there may be thousands of rows.
    """
    contents = pc.dictionary_encode(arms["study_config"]).combine_chunks()
    texts = contents.dictionary.to_pylist()
    rows: list[dict[str, Any]] = arms.drop_columns(["study_config"]).to_pylist()
    for row, index in zip(rows, contents.indices.to_pylist(), strict=True):
        row["study_config"] = None if index is None else texts[index]
    return rows


def _state(event: TrialEvent, known: dict[str, Any]) -> TrialState:
    metrics = {name: known[name] for name in METRICS}
    return TrialState(
        event.key,
        known["state"],
        event.attempt,
        known["epoch"],
        metrics,
        known["parameters"],
        event,
    )
