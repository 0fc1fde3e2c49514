"""Stand-ins for Ray Tune's side of a trial, for tests of callbacks and schedulers without Ray."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kdr.config.trial import Trial
from kdr.plan.points import Point
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.trial_report import Reached, TrialReport
from kdr.training.metrics import EpochMetrics, Evaluation


@dataclass
class FakeTuneTrial:
    """A trial of Tune, with the attributes that kdr reads."""

    trial_id: str
    config: Mapping[str, object] = field(default_factory=dict)
    last_result: Mapping[str, object] | None = None
    status: str = "RUNNING"
    error_file: str | None = None


@dataclass
class FakeStopper:
    """Counts how often a sweep was ended."""

    num_ends: int = 0

    def trial_reported(self, trial_id: str, running: Iterable[str]) -> None:
        """Does nothing."""

    def end_now(self) -> None:
        self.num_ends += 1


def launched(
    trial: Trial, report: TrialReport | None = None, *, parameters: Point | None = None
) -> FakeTuneTrial:
    """Returns a trial as Tune has it after its last report."""
    config = LaunchedTrial.of(trial, parameters=parameters or {}).as_config()
    return FakeTuneTrial("tune-1", config, report.as_result() if report else None)


def report_of(
    epoch: int,
    ap: float | None = None,
    *,
    attempt: int = 1,
    epochs: Iterable[Mapping[str, float]] = (),
    is_last: bool = False,
    failed: str | None = None,
    reason: str = "",
) -> TrialReport:
    """Returns the report of an epoch, or of a failure of the kind `failed`."""
    return TrialReport(
        attempt=attempt,
        reached=Reached(epoch, {"AP": ap}),
        epochs=tuple(epochs),
        is_last=is_last or failed is not None,
        failure_kind=failed,
        reason=reason,
    )


def epoch_of(epoch: int, metrics: dict[str, float] | None) -> EpochMetrics:
    """Returns an epoch of 10 s, with these metrics if it was evaluated."""
    return EpochMetrics(
        epoch=epoch,
        step=epoch,
        losses={},
        weighted_losses={},
        gradient_norms={},
        lr=0.1,
        seconds=10.0,
        eval_seconds=1.0,
        images_per_s=1.0,
        images_seen=epoch,
        peak_memory_bytes=None,
        first_batch_hash="",
        evaluation=None if metrics is None else Evaluation(metrics, {}),
    )
