"""What the log knows of a search: which trials have ended and how, which were interrupted, how much
of the budget is used.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdr.config.study import Study
from kdr.config.trial import TrialConfig
from kdr.plan.known import KnownTrial
from kdr.results.reader import Log, TrialState
from kdr.results.usage import gpu_hours_used, seconds_used
from kdr.run.observer import TrialUpdate

_ENDED = ("completed", "stopped_early", "failed", "cancelled")


@dataclass(frozen=True)
class History:
    """The past of one study's search, out of the log.

    A completed trial of any study is known. Trials that were stopped early, failed or were
    cancelled count where this study ran them: another study's rule says nothing here. An excluded
    trial is one that has not ended.
    """

    known: dict[str, KnownTrial]
    """Ended trials by key."""
    interrupted: tuple[dict[str, Any], ...]
    """Searched settings of this study's trials that were begun and not ended, excluded, or planned
    and never begun, by this study or another one that was at them; they run first."""
    num_used: int
    """Trials charged to the budget, the interrupted ones included; a trial that another study ran
    costs nothing."""
    seconds_used: float
    """Wall-clock seconds in which earlier runs of this study trained."""
    gpu_hours_used: float
    """GPUs that trials of earlier runs held, times the hours in which they did."""
    reached: dict[str, dict[int, float]]
    """Key -> {epoch: metric} of this study's trials, for early stopping to go on from; of those
    that go on themselves, without the last epoch, which they report again."""
    own: frozenset[str]
    """Keys of the trials that this study ran itself."""
    states: dict[str, TrialState]
    """State of every trial of this study."""
    numbers: dict[str, int]
    """Number of each of this study's trials, from 1, in the order in which they were first
    planned."""

    @classmethod
    def of(cls, log: Log, study: Study, *, forget: bool = False) -> "History":
        """Reads the past of a study's search.

        Args:
            log: the whole log, all studies.
            study: the study that is to run.
            forget: take nothing as known, so that everything runs again.
        """
        assert study.search is not None
        mine = {
            key: state
            for key, state in log.states_of(study.study).items()
            if state.role == "student"
        }
        parameters = {
            row["key"]: json.loads(row["parameters"] or "{}") for row in log.arms_of(study.study)
        }
        if forget:
            return cls({}, (), 0, 0.0, 0.0, {}, frozenset(), {}, {})
        own = {key: state for key, state in mine.items() if state.study == study.study}
        known = {
            state.key: _known(state, log, study.search.metric, parameters.get(state.key))
            for state in log.states().values()
            if state.role == "student"
            and (state.state == "completed" or (state.key in own and state.state in _ENDED))
        }
        begun = (
            key for key, state in own.items() if state.state not in _ENDED and key in parameters
        )
        noted = {
            row["key"]: row
            for row in log.arms_of(study.study)
            if row["levels"] is None and row["parameters"]
        }
        elsewhere = {
            key for key, state in mine.items() if key not in own and state.state != "completed"
        }
        planned = [key for key in noted if key not in log.states() or key in elsewhere]
        students = (key for key in log.keys_of(study.study) if key in mine or key in planned)
        return cls(
            known=known,
            interrupted=tuple(parameters[key] for key in (*begun, *planned)),
            num_used=len(own) + len(planned),
            seconds_used=seconds_used(log, study.study),
            gpu_hours_used=gpu_hours_used(log, study.study),
            reached={
                key: _decided(key, log, study.search.metric, goes_on=key not in known)
                for key in mine
            },
            own=frozenset(own),
            states=mine,
            numbers={key: number for number, key in enumerate(students, start=1)},
        )

    def progress(self, metric: str) -> Iterator[TrialUpdate]:
        """This study's ended trials, as whoever watches a run sees them."""
        for key, state in self.states.items():
            if key in self.known:
                yield TrialUpdate(
                    name=str(self.numbers[key]),
                    key=key,
                    state=state.state,
                    epoch=state.epoch,
                    epochs=TrialConfig.model_validate_json(state.config).training.epochs,
                    value=state.metrics.get(metric),
                    parameters=dict(self.known[key].parameters or {}),
                    reason=state.last.reason or "",
                )


def _known(
    state: TrialState, log: Log, metric: str, parameters: dict[str, Any] | None
) -> KnownTrial:
    assert state.state in _ENDED
    return KnownTrial(
        key=state.key,
        # that someone cancelled a trial says nothing about its settings
        end="failed" if state.state == "cancelled" else state.state,  # type: ignore[arg-type]
        value=state.metrics.get(metric) if state.state == "completed" else None,
        intermediate=_by_epoch(log, state.key, metric),
        parameters=parameters,
    )


def _decided(key: str, log: Log, metric: str, *, goes_on: bool) -> dict[int, float]:
    """The epochs of a trial at which it has been decided whether it goes on: of one that goes on,
    all but the last.
    """
    values = _by_epoch(log, key, metric)
    if goes_on and values:
        del values[max(values)]  # the driver may have been killed before it could stop the trial
    return values


def _by_epoch(log: Log, key: str, metric: str) -> dict[int, float]:
    rows = log.epochs_of(key).select(["epoch", metric]).to_pylist()
    return {row["epoch"]: row[metric] for row in rows if row[metric] is not None}
