"""The trials of a study, best first; only completed trials have a rank."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdr.errors import ConfigError
from kdr.report.formatting import spaced
from kdr.results.flat_settings import canonical
from kdr.results.reader import Log, State, TrialState
from kdr.results.schema import METRICS

# most conclusive first; `count_states` lists them in this order, too
_ORDER: tuple[State, ...] = (
    "completed",
    "stopped_early",
    "cancelled",
    "running",
    "interrupted",
    "failed",
    "excluded",
    "planned",
)


@dataclass(frozen=True)
class RankedTrial:
    """One student of a study."""

    rank: int | None
    """1 is the best; None unless the trial is completed and evaluated."""
    name: str
    """Name of its arm."""
    value: float | None
    """The metric at the last evaluated epoch."""
    parameters: Mapping[str, Any]
    """Path -> searched value; lists as JSON text."""
    state: TrialState

    @property
    def key(self) -> str:
        """The trial's key."""
        return self.state.key


def ranking(log: Log, study: str, metric: str = "AP") -> tuple[RankedTrial, ...]:
    """Returns the students of a study, completed ones first, then by state; best first in each.

    A trial that was stopped early had fewer epochs: its value is not comparable, so it has no rank.

    Raises:
        ConfigError: if there is no such metric.
    """
    arms = {row["key"]: row for row in log.arms_of(study)}
    students = [state for state in log.states_of(study).values() if state.role == "student"]
    values = {state.key: value_of(state, metric) for state in students}
    students.sort(
        key=lambda state: (
            _ORDER.index(state.state),
            -_or(values[state.key], -math.inf),
            state.key,
        )
    )
    trials = []
    for position, state in enumerate(students, start=1):
        arm = arms.get(state.key, {})
        drawn = json.loads(arm.get("parameters") or state.parameters or "{}")
        # completed trials with a value are sorted to the front, so the position is the rank
        rank = position if state.state == "completed" and values[state.key] is not None else None
        # as JSON text, lists can be compared, grouped and printed
        parameters = {path: canonical(value) for path, value in drawn.items()}
        trials.append(
            RankedTrial(rank, arm.get("arm") or state.key[:8], values[state.key], parameters, state)
        )
    return tuple(trials)


def best_trial(log: Log, study: str, metric: str = "AP") -> RankedTrial:
    """Returns the completed trial with the highest metric.

    Raises:
        ConfigError: if no trial is completed, or there is no such metric.
    """
    trials = ranking(log, study, metric)
    if trials and trials[0].rank == 1:
        return trials[0]
    states = (
        ", ".join(f"{count} {name}" for name, count in count_states(trials).items()) or "no trials"
    )
    raise ConfigError(
        f"{study} has no completed trial with a value for {metric} ({states}). Run the study first"
    )


def count_states(trials: Sequence[RankedTrial]) -> dict[str, int]:
    """Returns state in words -> number of trials, completed first, for the states that occur."""
    counts = {
        spaced(state): sum(trial.state.state == state for trial in trials) for state in _ORDER
    }
    return {name: count for name, count in counts.items() if count}


def searched_metric(log: Log, study: str) -> str:
    """Returns the metric that a study maximises or compares; AP if it names none."""
    content = log.study_content(study)
    return str((content.get("search") or content.get("ablation") or {}).get("metric", "AP"))


def value_of(state: TrialState, metric: str) -> float | None:
    """Returns the metric of a trial's last evaluated epoch; None without one.

    Raises:
        ConfigError: if there is no such metric.
    """
    if metric not in METRICS:
        raise ConfigError(f"--metric: must be one of {', '.join(METRICS)}, got {metric!r}")
    value = state.metrics[metric]
    return None if value is None or math.isnan(value) else value


def ranking_rows(trials: Sequence[RankedTrial], metric: str) -> tuple[list[str], list[list[Any]]]:
    """Returns column names and rows of a ranking, with one column per searched setting."""
    # in order of first appearance: a conditional setting comes where it was first drawn
    paths = list(dict.fromkeys(path for trial in trials for path in trial.parameters))
    columns = ["rank", "trial", "state", metric, "epochs", "seconds", *paths, "key"]
    rows = []
    for trial in trials:
        state = trial.state
        searched = [trial.parameters.get(path) for path in paths]
        rows.append(
            [
                trial.rank,
                trial.name,
                state.state,
                trial.value,
                state.epoch,
                state.seconds,
                *searched,
                trial.key,
            ]
        )
    return columns, rows


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
