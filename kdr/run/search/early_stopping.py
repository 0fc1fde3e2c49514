"""Early stopping: Ray's own rules, with trials named by key and epochs as the time axis.

- By key, so that a resumed study keeps its rungs and they recognise a resumed trial.
- By epoch, because Tune's `training_iteration` restarts at 1 when a trial is retried.
- Evaluated epochs only: Ray's rules (2.60) compare any value in a result, and a missing metric
  would end the sweep with a TypeError.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from kdr.config.search import EarlyStopping
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.trial_order import InOrder
from kdr.run.trial_report import TrialReport
from kdr.run.tune_protocols import TuneController, TuneTrial

Past = Iterable[tuple[str, Mapping[int, float]]]
"""(key, {epoch: value}) of trials that ran in earlier sessions of a study."""
Result = Mapping[str, object]
"""A result of Tune (`kdr.run.trial_report`)."""


@dataclass(frozen=True)
class KeyedTrial:
    """A trial as the rules see it."""

    trial_id: str
    """The trial's key."""


class StoppingRule(Protocol):
    """One of Ray's schedulers that decides by a trial's id and results alone."""

    def on_trial_add(self, controller: TuneController | None, trial: KeyedTrial, /) -> None:
        """Called when a trial waits to start."""

    def on_trial_error(self, controller: TuneController | None, trial: KeyedTrial, /) -> None:
        """Called when a trial failed."""

    def on_trial_result(
        self, controller: TuneController | None, trial: KeyedTrial, result: Result, /
    ) -> str:
        """Returns Ray's word for whether a trial continues."""
        ...

    def on_trial_complete(
        self, controller: TuneController | None, trial: KeyedTrial, result: Result, /
    ) -> None:
        """Called when a trial ended."""

    def on_trial_remove(self, controller: TuneController | None, trial: KeyedTrial, /) -> None:
        """Called when a trial was removed before it started."""

    def debug_string(self) -> str:
        """Returns the rule's state for people."""
        ...


class StudyScheduler(InOrder):
    """Starts trials in order, and stops them by a rule.

    Args:
        rule: one of Ray's schedulers that stop trials.
        metric: the metric to maximise.
        past: values of earlier sessions.
    """

    def __init__(self, rule: StoppingRule, *, metric: str, past: Past) -> None:
        super().__init__()
        # not `_metric`: Tune would take it for the scheduler's own, and refuse results without it
        self._rule, self._searched = rule, metric
        self._last_epoch: dict[str, int] = {}
        """Key -> last epoch that the rule has seen."""
        for key, values in past:
            self._replay(KeyedTrial(key), values)

    def on_trial_add(self, tune_controller: TuneController | None, trial: TuneTrial) -> None:
        """Adds a trial that waits to start, for the first time or again."""
        super().on_trial_add(tune_controller, trial)
        self._rule.on_trial_add(tune_controller, _keyed(trial))

    def on_trial_error(self, tune_controller: TuneController | None, trial: TuneTrial) -> None:
        """Passes on that a trial failed."""
        self._rule.on_trial_error(tune_controller, _keyed(trial))

    def on_trial_result(
        self,
        tune_controller: TuneController | None,
        trial: TuneTrial,
        result: Result,
    ) -> str:
        """Returns Ray's word for whether a trial continues after an epoch."""
        if not self._is_news(_keyed(trial), TrialReport.of_result(result)):
            return str(TrialScheduler.CONTINUE)
        return str(self._rule.on_trial_result(tune_controller, _keyed(trial), result))

    def on_trial_complete(
        self,
        tune_controller: TuneController | None,
        trial: TuneTrial,
        result: Result,
    ) -> None:
        """Passes the last result of a trial to the rule, unless the rule stopped the trial: then it
        has seen this result in `on_trial_result`.
        """
        if self._is_news(_keyed(trial), TrialReport.of_result(result)):
            self._rule.on_trial_complete(tune_controller, _keyed(trial), result)

    def on_trial_remove(self, tune_controller: TuneController | None, trial: TuneTrial) -> None:
        """Passes on that a trial was removed before it started."""
        self._rule.on_trial_remove(tune_controller, _keyed(trial))

    def debug_string(self) -> str:
        """Returns the rule's state for people."""
        return str(self._rule.debug_string())

    def _replay(self, trial: KeyedTrial, values: Mapping[int, float]) -> None:
        # As completions, which the rules record without a decision: the earlier session has already
        # decided about these epochs.
        for epoch, value in sorted(values.items()):
            if self._is_new(trial, epoch, value):
                self._rule.on_trial_add(None, trial)
                self._rule.on_trial_complete(None, trial, {"epoch": epoch, self._searched: value})

    def _is_news(self, trial: KeyedTrial, report: TrialReport | None) -> bool:
        """Returns whether a report has an evaluated epoch that the rule has not seen; a retried
        trial repeats some epochs.
        """
        return report is not None and self._is_new(
            trial, report.epoch, report.value(self._searched)
        )

    def _is_new(self, trial: KeyedTrial, epoch: int, value: float | None) -> bool:
        if value is None or epoch <= self._last_epoch.get(trial.trial_id, 0):
            return False
        self._last_epoch[trial.trial_id] = epoch
        return True


def make_scheduler(
    stop_early: EarlyStopping, *, metric: str, max_epochs: int, past: Past = ()
) -> TrialScheduler:
    """Returns the scheduler of a study.

    Args:
        stop_early: the study's setting.
        metric: the metric to maximise, a name in the results.
        max_epochs: epochs of a trial.
        past: values of earlier sessions, which count as if they had run in this one.
    """
    rule = _rule(stop_early, metric=metric, max_epochs=max_epochs)
    return StudyScheduler(rule, metric=metric, past=past)


def _rule(stop_early: EarlyStopping, *, metric: str, max_epochs: int) -> StoppingRule:
    if stop_early.asha is not None:
        asha = ASHAScheduler(
            time_attr="epoch",
            metric=metric,
            mode="max",
            max_t=max_epochs,
            grace_period=min(stop_early.asha.grace_epochs, max_epochs),
            reduction_factor=stop_early.asha.reduction,
            # a trial ends by itself at `max_t`: if Tune stopped it, it would count as stopped early
            stop_last_trials=False,
        )
        return cast("StoppingRule", asha)
    if stop_early.median is not None:
        median = MedianStoppingRule(
            time_attr="epoch",
            metric=metric,
            mode="max",
            grace_period=stop_early.median.grace_epochs,
            min_samples_required=stop_early.median.min_trials,
            # by default it pauses a trial while others wait (Ray 2.60), and the trial loses its
            # actor
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
        return cast("StoppingRule", median)
    return cast("StoppingRule", InOrder())


def _keyed(trial: TuneTrial) -> KeyedTrial:
    return KeyedTrial(LaunchedTrial.of_config(trial.config).key)
