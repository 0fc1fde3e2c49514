"""Which trials are stopped early: Ray's own rules, told of trials by their key and only of epochs
that were evaluated.

By their key, so that a study that goes on keeps its rungs, and a trial that goes on is the one that
they have seen. The time axis is `epoch`: Tune's `training_iteration` begins again when a trial is
retried. Ray's rules compute with whatever is in a result, so that an epoch without a metric would
end the sweep with a TypeError.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from kdr.config.search import EarlyStopping
from kdr.run.search.trial_order import InOrder


@dataclass(frozen=True)
class KeyedTrial:
    """A trial as the rules see it."""

    trial_id: str
    """The trial's key."""


class StudyScheduler(InOrder):
    """Runs trials in their order and stops them by a rule.

    Args:
        rule: one of Ray's schedulers that stop trials.
        metric: what is maximised.
        past: (key, {epoch: value}) of earlier trials of the study.
    """

    def __init__(
        self, rule: Any, *, metric: str, past: Iterable[tuple[str, Mapping[int, float]]]
    ) -> None:
        super().__init__()
        self._rule, self._searched = rule, metric
        self._last_epoch: dict[str, int] = {}
        for key, values in past:
            self._replay(KeyedTrial(key), values)

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial waits to start, for the first time or again."""
        super().on_trial_add(tune_controller, trial)
        self._rule.on_trial_add(tune_controller, _keyed(trial))

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A trial failed."""
        self._rule.on_trial_error(tune_controller, _keyed(trial))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on after an epoch."""
        if not self._is_news(_keyed(trial), result):
            return str(TrialScheduler.CONTINUE)
        return str(self._rule.on_trial_result(tune_controller, _keyed(trial), result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial ended, by itself or stopped; Tune tells its last result here, even if it was told
        before.
        """
        if self._is_news(_keyed(trial), result):
            self._rule.on_trial_complete(tune_controller, _keyed(trial), result)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """A trial was taken away before it started."""
        self._rule.on_trial_remove(tune_controller, _keyed(trial))

    def debug_string(self) -> str:
        """The rule's state in words."""
        return str(self._rule.debug_string())

    def _replay(self, trial: KeyedTrial, values: Mapping[int, float]) -> None:
        # As completions, which the rules record without deciding anything: what was decided then
        # stays decided.
        for epoch, value in sorted(values.items()):
            result = {"epoch": epoch, self._searched: value}
            if self._is_news(trial, result):
                self._rule.on_trial_add(None, trial)
                self._rule.on_trial_complete(None, trial, result)

    def _is_news(self, trial: KeyedTrial, result: Mapping[str, Any]) -> bool:
        """Whether a result is of an evaluated epoch that the rule has not seen; a retried trial
        repeats some.
        """
        value, epoch = result.get(self._searched), result.get("epoch", 0)
        if (
            not isinstance(value, int | float)
            or not math.isfinite(value)
            or epoch <= self._last_epoch.get(trial.trial_id, 0)
        ):
            return False
        self._last_epoch[trial.trial_id] = epoch
        return True


def make_scheduler(
    stop_early: EarlyStopping,
    *,
    metric: str,
    max_epochs: int,
    past: Iterable[tuple[str, Mapping[int, float]]] = (),
) -> TrialScheduler:
    """The scheduler of a study.

    Args:
        stop_early: the study's setting.
        metric: what is maximised, a key of the results.
        max_epochs: epochs of a trial.
        past: (key, {epoch: value}) of earlier trials of the study, which count as if they had run
            in this session.
    """
    return StudyScheduler(
        _rule(stop_early, metric=metric, max_epochs=max_epochs), metric=metric, past=past
    )


def _rule(stop_early: EarlyStopping, *, metric: str, max_epochs: int) -> TrialScheduler:
    settings: dict[str, Any] = {"time_attr": "epoch", "metric": metric, "mode": "max"}
    if stop_early.asha is not None:
        grace_epochs = min(stop_early.asha.grace_epochs, max_epochs)
        return ASHAScheduler(
            **settings,
            max_t=max_epochs,
            grace_period=grace_epochs,
            reduction_factor=stop_early.asha.reduction,
            # a trial ends by itself: one that Tune stops counts as stopped early
            stop_last_trials=False,
        )
    if stop_early.median is not None:
        # else it pauses a trial while others wait, and loses its actor
        settings["min_time_slice"] = math.inf
        return MedianStoppingRule(
            **settings,
            grace_period=stop_early.median.grace_epochs,
            min_samples_required=stop_early.median.min_trials,
        )
    return InOrder()


def _keyed(trial: Any) -> KeyedTrial:
    return KeyedTrial(trial.config["trial"]["key"])
