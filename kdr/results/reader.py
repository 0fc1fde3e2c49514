"""Reads the trial log, and says what state each trial is in. Whatever files lie in its folders, reading goes on."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

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
    damaged: tuple[Path, ...] = ()
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
        rows = self.arms.filter(pc.equal(self.arms["study"], study)).to_pylist()
        rows.sort(key=lambda row: row["time"])
        return list({(row["arm"], row["key"]): row for row in rows}.values())

    def ablation_arms_of(self, study: str) -> list[dict[str, Any]]:
        """The rows of the arms of an ablation as it was last run: arms and seeds that its file no longer has are left out."""
        rows = [row for row in self.arms_of(study) if row["levels"] is not None]
        newest = max(rows, key=lambda row: row["time"], default={"study_config": None})
        return [row for row in rows if row["study_config"] == newest["study_config"]]

    def epochs_of(self, key: str) -> pa.Table:
        """The epochs of one trial in order, without those that a later attempt has done again."""
        return self.current_epochs.filter(pc.equal(self.current_epochs["key"], key))

    @cached_property
    def current_epochs(self) -> pa.Table:
        """The epochs of all trials by key and epoch. An attempt that begins at epoch e replaces e and all after it.

        Excluded attempts, and those before them, are left out.
        """
        return self.epochs.take(pa.array(_current_rows(self.epochs, self.excluded_attempts), pa.int64()))

    @cached_property
    def excluded_attempts(self) -> dict[str, int]:
        """By key the last attempt that does not count; nor do those before it."""
        return _excluded_attempts(self.trials)

    @cached_property
    def _states(self) -> dict[str, TrialState]:
        events = self.trials.filter(pc.is_in(self.trials["event"], value_set=pa.array(EVENTS)))
        deciding = to_events(events.take(pa.array(_deciding_rows(events, self.excluded_attempts), pa.int64())))
        drawn = _last_draws(events)
        reached = _last_epochs(self.current_epochs)
        return {event.key: _state(event, drawn.get(event.key), reached.get(event.key, {})) for event in deciding}


def known_keys(log: Log) -> frozenset[str]:
    """Keys of completed trials, which need not be run again in any study."""
    return frozenset(key for key, state in log.states().items() if state.state == "completed")


def read_log(storage: Storage, study: str | None = None) -> Log:
    """Reads the log; one that does not exist yet is empty.

    Args:
        storage: where the log lies.
        study: only what this study ran or uses; another study's rows of the same keys are among it.
    """
    damaged: list[Path] = []
    tables = {}
    with ThreadPoolExecutor(max_workers=4) as pool:
        for name, schema in SCHEMAS.items():
            found = _read_table(storage, name, pool.map, damaged)
            tables[name] = pa.concat_tables([schema.empty_table(), *found]).combine_chunks()
    log = Log(**tables, damaged=tuple(damaged))
    return log if study is None else _only(log, study)


def _read_table(storage: Storage, name: TableName, run: Callable[..., Iterator[Any]], damaged: list[Path]) -> list[pa.Table]:
    tables = []
    for folder in study_folders(storage, name).values():
        for attempt in range(_LISTINGS):
            listing = list_folder(folder, name)
            found = list(run(lambda path: _read_or_reason(path, name), listing.fragments))
            vanished = any(isinstance(result, FileNotFoundError) for result in found)
            if not vanished or attempt == _LISTINGS - 1:
                break
        tables += [result for result in found if isinstance(result, pa.Table)]
        damaged += listing.damaged
        damaged += [path for path, result in zip(listing.fragments, found, strict=True) if isinstance(result, Exception)]
    return tables


def _read_or_reason(path: Path, name: TableName) -> pa.Table | Exception:
    try:
        return read_fragment(path, name)
    except (DamagedFragmentError, FileNotFoundError) as error:
        return error


def _only(log: Log, study: str) -> Log:
    keys = pa.array(log.keys_of(study), pa.string())

    def used(table: pa.Table) -> pa.Table:
        return table.filter(pc.or_(pc.equal(table["study"], study), pc.is_in(table["key"], value_set=keys)))

    arms = log.arms.filter(pc.equal(log.arms["study"], study))
    return Log(used(log.trials), used(log.epochs), arms, log.damaged)


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    """Columns as Python values, times as microseconds: making a datetime of each would cost more than all the rest."""
    return [(table[name].cast(pa.int64()) if name == "time" else table[name]).to_pylist() for name in names]


def _excluded_attempts(events: pa.Table) -> dict[str, int]:
    """By key the last attempt whose exclusion is in force: neither undone nor followed by a new start of the same number."""
    decisive = ("started", "resumed", "excluded", "included")
    rows = events.filter(pc.is_in(events["event"], value_set=pa.array(decisive)))
    last: dict[tuple[str, int], tuple[int, int, str]] = {}
    for key, attempt, event, time in zip(*_columns(rows, "key", "attempt", "event", "time"), strict=True):
        last[key, attempt] = max(last.get((key, attempt), (time, -1, "")), (time, decisive.index(event), event))
    excluded: dict[str, int] = {}
    for (key, attempt), (_, _, event) in last.items():
        if event == "excluded":
            excluded[key] = max(attempt, excluded.get(key, 0))
    return excluded


def _deciding_rows(events: pa.Table, excluded: Mapping[str, int]) -> list[int]:
    """For each key the index of the event that decides its state, keys in the order of the log."""
    columns = _columns(events, "key", "attempt", "event", "time", "epoch")
    best: dict[str, tuple[Any, ...]] = {}
    for index, (key, attempt, event, time, epoch) in enumerate(zip(*columns, strict=True)):
        is_excluded = attempt == excluded.get(key)
        if event == "included" or (event == "excluded" and not is_excluded):
            continue
        # whatever an excluded attempt goes on to do, it stays excluded
        weight = event == "excluded", event != "planned"
        # `planned` may come late, from another study that plans what is running; EVENTS settles ties of one instant
        order = (attempt, *weight, time, EVENTS.index(event), epoch or 0, index)
        if key not in best or order > best[key]:
            best[key] = order
    return [order[-1] for order in best.values()]


def _current_rows(epochs: pa.Table, excluded: Mapping[str, int]) -> list[int]:
    columns = _columns(epochs, "key", "attempt", "epoch", "time")
    latest: dict[str, dict[int, dict[int, tuple[Any, int]]]] = {}  # key -> attempt -> epoch -> (time, row)
    for index, (key, attempt, epoch, time) in enumerate(zip(*columns, strict=True)):
        if attempt <= excluded.get(key, 0):
            continue
        rows = latest.setdefault(key, {}).setdefault(attempt, {})
        if epoch not in rows or (time, index) > rows[epoch]:
            rows[epoch] = (time, index)
    return [row for key in sorted(latest) for row in _joined(latest[key])]


def _joined(attempts: dict[int, dict[int, tuple[Any, int]]]) -> Iterable[int]:
    """Row indices of one trial's epochs in order: of each attempt those before the next one's first."""
    rows: dict[int, int] = {}
    begun = None
    for attempt in sorted(attempts, reverse=True):
        rows |= {epoch: row for epoch, (_, row) in attempts[attempt].items() if begun is None or epoch < begun}
        begun = min(rows)
    return (rows[epoch] for epoch in sorted(rows))


def _last_draws(events: pa.Table) -> dict[str, str]:
    drawn = events.filter(pc.is_valid(events["parameters"])).sort_by([("time", "ascending"), ("parameters", "ascending")])
    return dict(zip(drawn["key"].to_pylist(), drawn["parameters"].to_pylist(), strict=True))


def _last_epochs(epochs: pa.Table) -> dict[str, dict[str, Any]]:
    """By key the last epoch, and the metrics of the last epoch that was evaluated."""
    reached: dict[str, dict[str, Any]] = {}
    columns = ("key", "attempt", "epoch", *METRICS)
    for row in epochs.select(columns).to_pylist():
        known = reached.setdefault(row["key"], dict.fromkeys(columns))
        known.update({name: value for name, value in row.items() if name not in METRICS or row["AP"] is not None})
    return reached


def _state(event: TrialEvent, parameters: str | None, reached: dict[str, Any]) -> TrialState:
    if event.event == "started" and reached.get("attempt") != event.attempt:
        reached = {}  # begun anew: the epochs of earlier attempts are not its own
    metrics = {name: getattr(event, name) for name in METRICS}
    if all(value is None for value in metrics.values()):
        metrics = {name: reached.get(name) for name in METRICS}
    epoch = event.epoch if event.epoch is not None else reached.get("epoch") or 0
    return TrialState(event.key, _STATES[event.event], event.attempt, epoch, metrics, parameters, event)
