"""The trials of a study without a search: its one trial, or the arms of an ablation by seed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.plan.designs import Arm, arm_points
from kdr.plan.points import Point
from kdr.results.reader import Log, TrialState
from kdr.results.writer import LogWriter
from kdr.run.observer import TrialUpdate
from kdr.run.study_arms import note_arm, note_arms


@dataclass(frozen=True)
class ListedTrial:
    """A trial of the list."""

    trial: Trial
    name: str
    """Display name: the arm and the seed. Arms that are the same trial are named together."""
    parameters: Point | None = None
    """Settings that differ from the study's base trial, by path; None in a study of one trial."""


class TrialList:
    """The trials of a study without a search, in the order in which they run, each key once.

    Args:
        study: the study.
        make_trial: gives a trial its identity.
    """

    def __init__(self, study: Study, make_trial: Callable[[TrialConfig], Trial]) -> None:
        self._study = study
        points = arm_points(study.ablation) if study.ablation else []
        self._arms: list[tuple[Arm, Trial]] = [
            (arm, make_trial(study.trial_with(point))) for arm, point in points
        ]
        listed = (
            list(_by_key(self._arms))
            if study.ablation
            else [ListedTrial(make_trial(study.base), "1")]
        )
        self.trials = {one.trial.key: one for one in listed}
        """The trials by key."""

    def missing(self, past: Log) -> list[ListedTrial]:
        """Returns the trials that have to run: neither completed, by any study, nor cancelled.

        Failed trials run again, and trials that another study stopped early run to their full
        length.
        """
        states = past.states()
        return [
            one
            for key, one in self.trials.items()
            if key not in states or not _is_over(states[key])
        ]

    def note(self, log: LogWriter, past: Log) -> None:
        """Writes which trials the study uses, unless the log already has them."""
        if self._study.ablation is not None:
            note_arms(log, past, self._study, self._arms)
            return
        [one] = self.trials.values()
        if one.trial.key not in past.keys_of(self._study.study):
            note_arm(log, self._study, one.trial)

    def ended(self, past: Log) -> list[tuple[str, float | None]]:
        """Returns key and metric of the trials that are over and that this study ran itself."""
        states = past.states()
        return [
            (one.key, one.value)
            for one in self.progress(past)
            if states[one.key].study == self._study.study
        ]

    def progress(self, past: Log) -> Iterator[TrialUpdate]:
        """Yields the trials that are over, as updates for an observer."""
        states = past.states()
        missing = {one.trial.key for one in self.missing(past)}
        for key, one in self.trials.items():
            if key not in missing:
                yield _update(one, states[key], self._study.metric)


def _by_key(arms: list[tuple[Arm, Trial]]) -> Iterator[ListedTrial]:
    trials: dict[str, list[tuple[Arm, Trial]]] = {}
    for arm, trial in arms:
        trials.setdefault(trial.key, []).append((arm, trial))
    for same in trials.values():
        # equal keys have equal numbers, so any of these arms stands for all
        arm, trial = same[0]
        name = f"{' and '.join(arm.name for arm, _ in same)}, seed {trial.config.seed}"
        yield ListedTrial(trial, name, {**arm.changes, "seed": trial.config.seed})


def _is_over(state: TrialState) -> bool:
    return state.state in ("completed", "cancelled")


def _update(one: ListedTrial, state: TrialState, metric: str) -> TrialUpdate:
    return TrialUpdate(
        name=one.name,
        key=state.key,
        state=state.state,
        epoch=state.epoch,
        epochs=one.trial.config.training.epochs,
        value=state.metrics[metric],
        parameters=one.parameters or {},
        reason=state.last.reason or "",
    )
