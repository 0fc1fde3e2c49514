"""The past of a search, read from the log: ended and interrupted trials, and the budget used."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from kdr.config.study import Study
from kdr.config.trial import TrialConfig
from kdr.plan.known import End, KnownTrial
from kdr.plan.points import Point
from kdr.results.reader import Log, TrialState
from kdr.results.usage import gpu_hours_used, seconds_used
from kdr.run.observer import TrialUpdate
from kdr.run.search.budget import Used

_ENDS: dict[str, End] = {
    "completed": "completed",
    "stopped_early": "stopped_early",
    "failed": "failed",
    # a user's decision to cancel says nothing about the settings: no result, as for a failure
    "cancelled": "failed",
}
"""State of an ended trial -> how a search counts it."""


@dataclass(frozen=True)
class History:
    """The past of one study's search; without arguments, of a search that never ran.

    Trials that another study completed are known here, too: equal keys have equal numbers. Trials
    that another study stopped early, or that failed there, are not: its rules are not this study's.
    An excluded trial counts as not ended.
    """

    known: Mapping[str, KnownTrial] = field(default_factory=dict)
    """Ended trials by key."""
    interrupted: tuple[Point, ...] = ()
    """Points of this study's trials that started or were planned and have not ended. They run
    first."""
    used: Used = field(default_factory=Used)
    """The part of the budget that earlier sessions used."""
    reached: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Key -> {epoch: metric} of this study's trials, for epochs after which early stopping let them
    continue."""
    own: frozenset[str] = frozenset()
    """Keys of the trials that this study ran itself."""
    states: Mapping[str, TrialState] = field(default_factory=dict)
    """State of every trial that this study uses, no matter which study ran it."""
    numbers: Mapping[str, int] = field(default_factory=dict)
    """Key -> number of each of this study's trials, from 1, in the order they were planned."""

    @classmethod
    def of(cls, log: Log, study: Study, *, forget: bool = False) -> "History":
        """Reads the past of a study's search.

        Args:
            log: the whole log, all studies.
            study: the study that is about to run.
            forget: return an empty past, so that everything runs again.
        """
        assert study.search is not None
        if forget:
            return cls()
        metric = study.search.metric
        # A trial belongs to the study that ran it last. `states` holds more than `own`: a study
        # notes each trial that it asks for before anyone runs it.
        states = {
            key: state
            for key, state in log.states_of(study.study).items()
            if state.role == "student"
        }
        own = {key: state for key, state in states.items() if state.study == study.study}
        points: dict[str, Point] = {
            row["key"]: json.loads(row["parameters"] or "{}") for row in log.arms_of(study.study)
        }
        known = {
            state.key: _known(state, log, metric, points.get(state.key))
            for state in log.states().values()
            if state.role == "student"
            and (state.state == "completed" or (state.key in own and state.state in _ENDS))
        }
        started = [key for key, state in own.items() if state.state not in _ENDS and key in points]
        planned = _planned(log, study, states, own)
        students = [key for key in log.keys_of(study.study) if key in states or key in planned]
        return cls(
            known=known,
            interrupted=tuple(points[key] for key in (*started, *planned)),
            used=Used(
                trials=len(own) + len(planned),
                hours=seconds_used(log, study.study) / 3600,
                gpu_hours=gpu_hours_used(log, study.study),
            ),
            reached={key: _decided(log, key, metric, resumes=key not in known) for key in states},
            own=frozenset(own),
            states=states,
            numbers={key: number for number, key in enumerate(students, start=1)},
        )

    def progress(self, metric: str) -> Iterator[TrialUpdate]:
        """Yields this study's ended trials as updates for an observer."""
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


def _planned(
    log: Log, study: Study, states: Mapping[str, TrialState], own: Mapping[str, TrialState]
) -> list[str]:
    """Returns the keys of trials that this study noted but never ran, and that no study completed.

    Either the driver was killed between note and start, or another study was training the trial,
    and its attempt gave no result that counts here.
    """
    noted = dict.fromkeys(
        row["key"]
        for row in log.arms_of(study.study)
        if row["levels"] is None and row["parameters"]  # rows of a search, not of an ablation
    )
    left_by_another_study = {
        key for key, state in states.items() if key not in own and state.state != "completed"
    }
    return [key for key in noted if key not in log.states() or key in left_by_another_study]


def _known(state: TrialState, log: Log, metric: str, point: Point | None) -> KnownTrial:
    return KnownTrial(
        key=state.key,
        end=_ENDS[state.state],
        value=state.metrics.get(metric) if state.state == "completed" else None,
        intermediate=_by_epoch(log, state.key, metric),
        parameters=point,
    )


def _decided(log: Log, key: str, metric: str, *, resumes: bool) -> dict[int, float]:
    """Returns the epochs of a trial after which early stopping let it continue.

    If the trial resumes, its last epoch is left out: the driver may have been killed before it
    could stop the trial there. The trial reports that epoch again.
    """
    values = _by_epoch(log, key, metric)
    if resumes and values:
        del values[max(values)]
    return values


def _by_epoch(log: Log, key: str, metric: str) -> dict[int, float]:
    rows = log.epochs_of(key).select(["epoch", metric]).to_pylist()
    return {row["epoch"]: row[metric] for row in rows if row[metric] is not None}
