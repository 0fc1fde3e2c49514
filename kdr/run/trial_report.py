"""A trial's report from its actor to the driver, and its form as a result of Tune."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kdr.results.schema import METRICS
from kdr.training.metrics import EpochMetrics

STORAGE = "storage"
"""Failure kind of a trial whose files cannot be written. The trial has not failed: the study ends,
and the same command resumes it. Never in the log."""
_REPORT = "report"


@dataclass(frozen=True)
class Reached:
    """Progress of one attempt: columns of its next event in the log."""

    epoch: int = 0
    """Last finished epoch; 0 before the first."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """AP to APl of the last evaluated epoch; empty before the first."""
    seconds: float | None = None
    """Training and evaluation of all finished epochs; None before the first."""
    best_epoch: int | None = None
    """Epoch of the highest AP."""
    best_AP: float | None = None  # noqa: N815 - the metric is called AP

    def after(self, metrics: EpochMetrics) -> "Reached":
        """Returns the progress after one more epoch."""
        reached = replace(
            self,
            epoch=metrics.epoch,
            seconds=(self.seconds or 0.0) + metrics.seconds + metrics.eval_seconds,
        )
        if metrics.evaluation is None:
            return reached  # with the metrics of the last evaluation
        found = metrics.evaluation.metrics
        reached = replace(reached, metrics={name: found.get(name) for name in METRICS})
        ap = found.get("AP")
        if ap is None or (self.best_AP is not None and ap <= self.best_AP):
            return reached
        return replace(reached, best_epoch=metrics.epoch, best_AP=ap)

    def columns(self) -> dict[str, Any]:
        """Returns fields of a `TrialEvent` by name."""
        return {
            **self.metrics,
            "epoch": self.epoch or None,
            "seconds": self.seconds,
            "best_epoch": self.best_epoch,
            "best_AP": self.best_AP,
        }


@dataclass(frozen=True)
class TrialReport:
    """An actor's report on its trial: sent after each evaluated epoch, and once at the end."""

    attempt: int
    """Counts from 1, over all runs of the trial's key."""
    reached: Reached = Reached()
    """Everything up to the last finished epoch."""
    epochs: tuple[Mapping[str, float], ...] = ()
    """Numbers of every epoch finished since the previous report, by name, as loggers show them. The
    last one is evaluated, unless the trial failed."""
    is_last: bool = False
    """Whether the trial ended: it reached its last epoch, or failed."""
    failure_kind: str | None = None
    """Kind of failure: `TrialFailure.kind`, `error` or `STORAGE`; None if it did not fail."""
    reason: str = ""
    """Why the trial failed, in one sentence."""

    @property
    def epoch(self) -> int:
        """Last finished epoch; 0 before the first."""
        return self.reached.epoch

    def value(self, metric: str) -> float | None:
        """Returns a metric of the last evaluated epoch. None if it is missing, NaN or infinite, or
        if the trial failed: a failed trial has no result.
        """
        value = None if self.failure_kind else self.reached.metrics.get(metric)
        return value if value is not None and math.isfinite(value) else None

    def as_result(self) -> dict[str, object]:
        """Returns the report as a result of Tune.

        Ray's schedulers read `epoch` and the metrics by name, and Tune reads `done`; everything
        else is the report itself. It stays one object because Tune 2.60 flattens nested
        dictionaries ("report/epoch") before schedulers and searchers see a result.
        """
        metrics = {name: self.value(name) for name in METRICS}
        return {
            "done": self.is_last,
            "epoch": self.epoch,
            # NaN: if one of Ray's rules compared None with a number, the sweep would end
            **{name: math.nan if value is None else value for name, value in metrics.items()},
            _REPORT: self,
        }

    @classmethod
    def of_result(cls, result: Mapping[str, object] | None) -> "TrialReport | None":
        """Returns the report in a result of Tune; None before the first one, when Tune has only
        columns of its own.
        """
        report = (result or {}).get(_REPORT)
        return report if isinstance(report, cls) else None


def ends_trial(result: Mapping[str, object]) -> bool:
    """Returns whether a result is its trial's last: the trial ended, or the scheduler stops it.
    Tune marks the latter only in the result.
    """
    return bool(result.get("done"))
