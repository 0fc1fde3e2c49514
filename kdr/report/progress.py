"""Study progress: trials, epochs and an ETA."""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.report.ranking import value_of
from kdr.results.reader import Log, TrialState
from kdr.results.usage import gpu_hours_used

_UNFINISHED = ("planned", "running", "interrupted", "excluded")  # an excluded trial runs again
# a running trial counts as active for this long after its last row, or for three epochs if longer
_ACTIVE_S = 600.0


@dataclass(frozen=True)
class TrialProgress:
    """One trial of a study."""

    name: str
    """Its arm and seed; `teacher` for the teacher."""
    key: str
    state: str
    epoch: int
    """Last finished epoch."""
    epochs: int
    """Epochs of the complete trial."""
    value: float | None
    """The metric at the last evaluation; None before the first."""
    age_s: float
    """Seconds since its last row in the log."""
    reason: str | None
    """Why it failed, was stopped, cancelled or excluded; None otherwise."""


@dataclass(frozen=True)
class ArmProgress:
    """One arm of an ablation."""

    name: str
    num_seeds: int
    """Planned trials."""
    counts: dict[str, int]
    """State -> number of its trials, for the states that occur."""


@dataclass(frozen=True)
class StudyProgress:
    """The progress of all trials of a study."""

    study: str
    metric: str
    trials: tuple[TrialProgress, ...]
    total: int | None
    """Planned trials; None if a budget in hours or GPU-hours sets the limit."""
    seconds_left: float | None
    """ETA from the seconds per epoch so far; None if it cannot be estimated yet."""
    gpu_hours_used: float = 0.0
    """GPU-hours that its trials have held so far."""
    gpu_hours: float | None = None
    """Budget of GPU-hours; None if the study has none."""
    arms: tuple[ArmProgress, ...] = ()
    """The arms of an ablation."""

    @property
    def counts(self) -> dict[str, int]:
        """State -> number of students, for the states that occur."""
        return dict(Counter(trial.state for trial in self.students))

    @property
    def students(self) -> tuple[TrialProgress, ...]:
        """The trials without teachers."""
        return tuple(trial for trial in self.trials if trial.name != "teacher")

    @property
    def is_over(self) -> bool:
        """Whether every planned trial has ended."""
        ended = sum(trial.state not in _UNFINISHED for trial in self.students)
        return self.total is not None and 0 < self.total <= ended


def study_progress(log: Log, study: str, *, now: datetime, metric: str = "AP") -> StudyProgress:
    """Returns the progress of a study, from its log alone.

    Args:
        log: the trial log.
        study: name of the study.
        now: current time, UTC; ages of rows are relative to it.
        metric: the metric to show.
    """
    names, last_rows = trial_names(log, study), _last_rows(log)
    trials = []
    for key, state in _states(log, study).items():
        name = "teacher" if state.role == "teacher" else names.get(key, key[:8])
        # while a trial runs, only its epochs write rows; its last event may be hours old
        age = (now - max(state.last.time, last_rows.get(key, state.last.time))).total_seconds()
        epochs = int(json.loads(state.config).get("training", {}).get("epochs", 0))
        value = value_of(state, metric)
        trials.append(
            TrialProgress(
                name,
                key,
                state.state,
                state.epoch,
                epochs,
                value,
                max(age, 0.0),
                state.last.reason,
            )
        )
    search = log.study_content(study).get("search") or {}
    total = _total(log, study, search, sum(trial.name != "teacher" for trial in trials))
    left = _seconds_left(log, trials, total)
    arms = tuple(_arm_progress(log, study))
    return StudyProgress(
        study,
        metric,
        tuple(trials),
        total,
        left,
        gpu_hours_used(log, study),
        search.get("gpu_hours"),
        arms,
    )


def trial_names(log: Log, study: str) -> dict[str, str]:
    """Returns key -> name of a study's trials: the arm, in an ablation with the seed."""
    arms: dict[str, list[str]] = {}
    rows = log.ablation_arms_of(study)
    for row in rows:
        arms.setdefault(row["key"], []).append(row["arm"])
    of_ablation = {
        row["key"]: f"{' and '.join(arms[row['key']])}, seed {row['seed']}" for row in rows
    }
    return {row["key"]: row["arm"] for row in log.arms_of(study)} | of_ablation


def _states(log: Log, study: str) -> dict[str, TrialState]:
    """Returns the states of a study's trials; for an ablation, of its current arms and teachers."""
    # arms that have since been removed from the file no longer count
    current = {row["key"] for row in log.ablation_arms_of(study)}
    states = log.states_of(study)
    return {
        key: state
        for key, state in states.items()
        if not current or key in current or state.role == "teacher"
    }


def _arm_progress(log: Log, study: str) -> Iterator[ArmProgress]:
    arms: dict[str, list[str]] = {}
    for row in log.ablation_arms_of(study):
        arms.setdefault(row["arm"], []).append(row["key"])
    states = log.states()
    for name, keys in arms.items():
        yield ArmProgress(
            name, len(keys), dict(Counter(states[key].state for key in keys if key in states))
        )


def _last_rows(log: Log) -> dict[str, datetime]:
    last = log.epochs.group_by("key").aggregate([("time", "max")])
    return dict(zip(last["key"].to_pylist(), last["time_max"].to_pylist(), strict=True))


def _total(log: Log, study: str, search: Mapping[str, Any], known: int) -> int | None:
    """Returns the planned number of trials: a search's budget, or the arms in the log."""
    if search:
        budget = search.get("trials")
        return max(int(budget), known) if budget else None
    rows = log.ablation_arms_of(study) or log.arms_of(study)
    teachers = {key for key, state in log.states_of(study).items() if state.role == "teacher"}
    return max(len({row["key"] for row in rows} - teachers), known) or None


def _seconds_left(log: Log, trials: Iterable[TrialProgress], total: int | None) -> float | None:
    # teachers come before the students, and are not part of the budget
    students = [trial for trial in trials if trial.name != "teacher"]
    cost = _epoch_seconds(log, [trial.key for trial in students])
    if total is None or cost is None:
        return None
    ended = [trial for trial in students if trial.state not in _UNFINISHED]
    # trials that have not started are assumed to be stopped early as often as the earlier ones
    usual = (
        statistics.fmean(trial.epoch for trial in ended)
        if ended
        else max((trial.epochs for trial in students), default=0)
    )
    to_come = max(0, total - len(students)) * usual
    unfinished = [trial for trial in students if trial.state in _UNFINISHED]
    # a trial beyond the usual length will likely run to its end
    started = sum(
        (usual if trial.epoch < usual else trial.epochs) - trial.epoch for trial in unfinished
    )
    active = [
        trial
        for trial in students
        if trial.state == "running" and trial.age_s < max(_ACTIVE_S, 3 * cost)
    ]
    return (to_come + started) * cost / max(1, len(active))


def _epoch_seconds(log: Log, keys: list[str]) -> float | None:
    rows = log.current_epochs.filter(
        pc.is_in(log.current_epochs["key"], value_set=pa.array(keys, pa.string()))
    )
    training, evaluation = pc.mean(rows["seconds"]).as_py(), pc.sum(rows["eval_seconds"]).as_py()
    return None if training is None else float(training) + float(evaluation or 0.0) / len(rows)
