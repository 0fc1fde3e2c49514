"""Reads the trial log, and says what state each trial is in. Whatever files lie in its folders, reading goes on."""

import itertools
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from kdr.files import StoredPath
from kdr.results.current_rows import current_rows, deciding_rows, excluded_attempts, last_draws, last_epochs
from kdr.results.fragments import DamagedFragmentError, list_folder, read_fragment, study_folders
from kdr.results.schema import EVENTS, METRICS, SCHEMAS, TableName, TrialEvent, to_events
from kdr.storage import Storage

State = Literal["planned", "running", "interrupted", "failed", "stopped_early", "completed", "cancelled", "excluded"]
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
_REQUESTS = 16
"""Fragments that are asked for at a time in an object store, where each takes two round trips."""
_LISTINGS = 5  # a folder is listed again when a compaction deletes files between listing and reading


@dataclass(frozen=True)
class TrialState:
    """What is known of one trial now."""

    key: str
    state: State
    attempt: int
    epoch: int
    """Last finished epoch; 0 before the first."""
    metrics: dict[str, float | None]
    """AP .. APl of the last evaluated epoch."""
    parameters: str | None
    """The last draw of a search that led to this trial, as JSON."""
    last: TrialEvent
    """The event that decided the state, with provenance, failure, weights, and the reason."""

    @property
    def study(self) -> str:
        """The study that ran it last."""
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
        """Training time so far."""
        return self.last.seconds


@dataclass(frozen=True)
class Log:
    """The rows of the log, as three Arrow tables. Nothing in it changes when the log grows."""

    trials: pa.Table
    """Every event (`TrialEvent`)."""
    epochs: pa.Table
    """Every epoch of every attempt (`EpochRow`)."""
    arms: pa.Table
    """Which keys each study uses (`ArmRow`)."""
    damaged: tuple[StoredPath, ...] = ()
    """Files that were passed over: truncated, or holding something else than rows of the log."""

    def states(self) -> dict[str, TrialState]:
        """The state of each trial by key: the last attempt's last event decides; an event `planned` gives way to any other."""
        return self._states

    def studies(self) -> tuple[str, ...]:
        """Names of all studies, sorted."""
        return tuple(sorted({*self.trials["study"].to_pylist(), *self.arms["study"].to_pylist()}))

    def keys_of(self, study: str) -> tuple[str, ...]:
        """Keys of the trials that a study uses, also where another study ran them; arms first, in the order of the log."""
        rows = (table.filter(pc.equal(table["study"], study))["key"].to_pylist() for table in (self.arms, self.trials))
        return tuple(dict.fromkeys(itertools.chain.from_iterable(rows)))

    def states_of(self, study: str) -> dict[str, TrialState]:
        """The states of the trials that a study uses; an arm that nobody has begun has none."""
        return {key: self._states[key] for key in self.keys_of(study) if key in self._states}

    def arms_of(self, study: str) -> list[dict[str, Any]]:
        """The study's rows of the table `arms`: the last one of each (arm, key), in the order in which they came."""
        return list(self._arms.get(study, {}).values())

    def ablation_arms_of(self, study: str) -> list[dict[str, Any]]:
        """The rows of the arms of an ablation as it was last run: arms and seeds that its file no longer has are left out."""
        rows = [row for row in self.arms_of(study) if row["levels"] is not None]
        newest = max(rows, key=lambda row: row["time"], default={"study_config": None})
        return [row for row in rows if row["study_config"] == newest["study_config"]]

    @property
    def newest_arm(self) -> datetime | None:
        """When a study was last noted, by any study's rows."""
        newest: datetime | None = pc.max(self.arms["time"]).as_py()
        return newest

    def epochs_of(self, key: str) -> pa.Table:
        """The epochs of one trial in order, without those that a later attempt has done again."""
        return self.current_epochs.filter(pc.equal(self.current_epochs["key"], key))

    @cached_property
    def current_epochs(self) -> pa.Table:
        """The epochs of all trials by key and epoch. An attempt that begins at epoch e replaces e and all after it.

        Excluded attempts, and those before them, are left out.
        """
        return self.epochs.take(current_rows(self.epochs, self.excluded_attempts))

    @cached_property
    def excluded_attempts(self) -> dict[str, int]:
        """By key the last attempt that does not count; nor do those before it."""
        return excluded_attempts(self.trials)

    @cached_property
    def _arms(self) -> dict[str, dict[tuple[str, str], dict[str, Any]]]:
        """By study its rows of the table `arms` by arm and key, the last one of each in the place of the first."""
        arms: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
        for row in sorted(_arm_rows(self.arms), key=lambda row: row["time"]):
            arms.setdefault(row["study"], {})[row["arm"], row["key"]] = row
        return arms

    @cached_property
    def _states(self) -> dict[str, TrialState]:
        events = self.trials.filter(pc.is_in(self.trials["event"], value_set=pa.array(EVENTS)))
        deciding = to_events(events.take(pa.array(deciding_rows(events, self.excluded_attempts), pa.int64())))
        drawn = last_draws(events)
        reached = last_epochs(self.current_epochs)
        return {event.key: _state(event, drawn.get(event.key), reached.get(event.key, {})) for event in deciding}


def known_keys(log: Log) -> frozenset[str]:
    """Keys of completed trials, which need not be run again in any study."""
    return frozenset(key for key, state in log.states().items() if state.state == "completed")


def read_log(storage: Storage, study: str | None = None, *, leave_out: Collection[str] = ()) -> Log:
    """Reads the log; one that does not exist yet is empty.

    Args:
        storage: where the log lies.
        study: only what this study ran or uses; another study's rows of the same keys are among it.
        leave_out: columns of the epochs that are not needed, such as `losses`; they read as null.
    """
    with ThreadPoolExecutor(max_workers=4 if isinstance(storage.root, Path) else _REQUESTS) as pool:
        reading = _Reading(storage, pool.map, leave_out)
        tables = {name: reading.table(name) for name in SCHEMAS} if study is None else _tables_of(reading, study)
    return Log(**tables, damaged=tuple(reading.damaged))


def _tables_of(reading: "_Reading", study: str) -> dict[TableName, pa.Table]:
    """The rows of one study, and other studies' rows of the same keys; of other files, little more than keys is read."""
    others = [name for name in reading.studies("trials") if name != study]
    arms, trials = reading.table("arms", [study]), reading.table("trials", [study])
    keys = pc.unique(pa.chunked_array([*arms["key"].chunks, *trials["key"].chunks], pa.string()))
    elsewhere = reading.table("trials", others, keys)
    # whoever wrote an epoch of a trial has written an event of it before
    ran_in = pc.unique(elsewhere["study"]).to_pylist()
    epochs = [reading.table("epochs", [study]), reading.table("epochs", ran_in, keys)]
    return {"trials": _joined_tables(trials, elsewhere), "epochs": _joined_tables(*epochs), "arms": arms}


def _joined_tables(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables).combine_chunks()


@dataclass
class _Reading:
    """One reading of the log."""

    storage: Storage
    run: Callable[..., Iterator[Any]]
    leave_out: Collection[str]
    damaged: list[StoredPath] = field(default_factory=list)

    def studies(self, name: TableName) -> list[str]:
        """Studies that have a folder of a table."""
        return list(study_folders(self.storage, name))

    def table(self, name: TableName, studies: Collection[str] | None = None, keys: pa.Array | None = None) -> pa.Table:
        """The rows of a table, of some studies or all, and of some trials or all."""
        folders = study_folders(self.storage, name)
        found = [
            rows
            for study, folder in folders.items()
            if studies is None or study in studies
            for rows in self._rows(folder, name, keys)
        ]
        return _joined_tables(SCHEMAS[name].empty_table(), *found)

    def _rows(self, folder: StoredPath, name: TableName, keys: pa.Array | None) -> list[pa.Table]:
        left_out = self.leave_out if name == "epochs" else ()
        for attempt in range(_LISTINGS):
            listing = list_folder(folder, name)
            found = list(self.run(lambda path: _read_or_reason(path, name, keys, left_out), listing.fragments))
            vanished = any(isinstance(result, FileNotFoundError) for result in found)
            if not vanished or attempt == _LISTINGS - 1:
                break
        self.damaged += listing.damaged
        self.damaged += [path for path, result in zip(listing.fragments, found, strict=True) if isinstance(result, Exception)]
        return [result for result in found if isinstance(result, pa.Table)]


def _read_or_reason(path: StoredPath, name: TableName, keys: pa.Array | None, leave_out: Collection[str]) -> pa.Table | Exception:
    try:
        return read_fragment(path, name, keys, leave_out)
    except (DamagedFragmentError, FileNotFoundError) as error:
        return error


def _arm_rows(arms: pa.Table) -> list[dict[str, Any]]:
    """Rows as Python values. All rows of a run share the text of its study, which is long where there are many arms."""
    contents = pc.dictionary_encode(arms["study_config"]).combine_chunks()
    texts = contents.dictionary.to_pylist()
    rows: list[dict[str, Any]] = arms.drop_columns(["study_config"]).to_pylist()
    for row, index in zip(rows, contents.indices.to_pylist(), strict=True):
        row["study_config"] = None if index is None else texts[index]
    return rows


def _state(event: TrialEvent, parameters: str | None, reached: dict[str, Any]) -> TrialState:
    if event.event == "started" and reached.get("attempt") != event.attempt:
        reached = {}  # begun anew: the epochs of earlier attempts are not its own
    metrics = {name: getattr(event, name) for name in METRICS}
    if all(value is None for value in metrics.values()):
        metrics = {name: reached.get(name) for name in METRICS}
    epoch = event.epoch if event.epoch is not None else reached.get("epoch") or 0
    return TrialState(event.key, _STATES[event.event], event.attempt, epoch, metrics, parameters, event)
