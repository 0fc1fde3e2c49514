"""The Ray Tune trainable of a study: an actor that trains one trial after another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ray import tune

from kdr.errors import StorageError, TrialFailure
from kdr.results.reader import TrialState, read_log
from kdr.results.schema import METRICS, Role
from kdr.results.writer import FLUSH_EVERY_S, LogWriter
from kdr.run.attempt.logged_fit import LoggedTrial
from kdr.run.attempt.trial_folder import num_attempts
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.engine.engine import Engine, InlineEngine, ProcessLostError
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.trial_report import STORAGE, Reached, TrialReport
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics


@dataclass(frozen=True)
class ActorSettings:
    """Settings that all actors of one sweep share."""

    storage: Storage
    study: str
    resources: ResolvedResources
    """Resources of one trial."""
    silence_s: float
    """Seconds without a batch after which a process of a trial ends itself."""
    role: Role = "student"
    """"teacher" for an actor that trains the study's teachers."""
    may_be_stopped: bool = False
    """Whether a scheduler stops trials early. Then any epoch may be the last, so each is written to
    the log before the driver receives it; otherwise rows wait for up to `FLUSH_EVERY_S`."""


class TrialActor(tune.Trainable):
    """Trains trials one after another, in this process or on a gang of workers; data set and
    teacher stay open between them.

    A trial that fails by itself (NaN, out of memory, bad data) is reported as ended, with its
    failure, and the actor stays alive. If a process dies, this one or one of the gang, Tune starts
    a new actor, and the trial resumes from its checkpoint.
    """

    # `tune.with_parameters` passes the settings, which the base class does not declare
    def setup(self, config: Mapping[str, object], *, settings: ActorSettings) -> None:  # type: ignore[override]
        """Opens the parts that trials share, and the first trial."""
        self._settings = settings
        flush_every_s = 0.0 if settings.may_be_stopped else FLUSH_EVERY_S
        self._log = LogWriter(settings.storage, settings.study, flush_every_s=flush_every_s)
        self._engine = _engine(settings)
        self._begin(LaunchedTrial.of_config(config))

    def reset_config(self, new_config: Mapping[str, object]) -> bool:
        """Switches to the next trial. The previous one ended or was stopped; its checkpoint was
        written before its last report.
        """
        self._end()
        self._begin(LaunchedTrial.of_config(new_config))
        return True

    def step(self) -> dict[str, object]:
        """Trains to the next evaluated epoch, and returns its report."""
        return self._next_report().as_result()

    def cleanup(self) -> None:
        """Releases the trial and the workers; the last call from Tune."""
        self._end()
        self._engine.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing: checkpoints are the trial's own, under its key."""

    def load_checkpoint(self, checkpoint: object) -> None:
        """Does nothing: `fit()` resumes from the trial's own checkpoint."""

    def _begin(self, launched: LaunchedTrial) -> None:
        storage = self._settings.storage
        self._trial = LoggedTrial(
            launched.trial,
            self._log,
            storage,
            role=self._settings.role,
            parameters=launched.parameters,
            trials_known=launched.trials_known,
            num_gpus=self._settings.resources.num_gpus,
        )
        self._epochs = self._trial.epochs(self._engine)
        self._logged_end = self._end_logged_in_this_run(launched)
        # the process that logged the end may have died before it removed the checkpoint
        if self._logged_end is not None and self._logged_end.state == "completed":
            storage.forget_progress(launched.key)

    def _end_logged_in_this_run(self, launched: LaunchedTrial) -> TrialState | None:
        """Returns the end of a trial whose process died after logging it and before Tune received
        the report: Tune retries the trial, which must not be trained twice.

        Ends of attempts before this run do not count: the study decided to run those again.
        """
        if num_attempts(self._settings.storage, launched.key) <= launched.attempts_before:
            return None
        log = read_log(self._settings.storage, self._settings.study)
        state = log.states().get(launched.key)
        has_ended = (
            state is not None
            and state.attempt > launched.attempts_before
            and state.state in ("completed", "failed", "cancelled")
        )
        return state if has_ended else None

    def _end(self) -> None:
        """Releases the trial, and writes pending rows."""
        self._epochs.close()
        self._log.flush()

    def _next_report(self) -> TrialReport:
        if self._logged_end is not None:
            return _report_of(self._logged_end)
        epochs: list[Mapping[str, float]] = []
        try:
            # ends with a report, since the last epoch of a trial is always evaluated
            for metrics in self._epochs:
                epochs.append(_numbers(metrics))
                if metrics.evaluation is not None:
                    return self._report(epochs, is_last=metrics.is_last)
        except ProcessLostError:
            # Tune replaces this actor now, and pending rows would be lost with it
            self._log.flush()
            raise
        except Exception as error:
            kind = _failure_kind(error)
            return self._report(epochs, is_last=True, failure_kind=kind, reason=str(error))
        raise AssertionError(f"trial {self._trial.trial.key} ended without an evaluation")

    def _report(
        self,
        epochs: list[Mapping[str, float]],
        *,
        is_last: bool,
        failure_kind: str | None = None,
        reason: str = "",
    ) -> TrialReport:
        return TrialReport(
            attempt=self._trial.attempt,
            reached=self._trial.reached,
            epochs=tuple(epochs),
            is_last=is_last,
            failure_kind=failure_kind,
            reason=reason,
        )


def _engine(settings: ActorSettings) -> Engine:
    resources = settings.resources
    if resources.workers == 1:
        import torch

        # Ray reserves CPUs, but does not bind a process to them
        torch.set_num_threads(max(1, math.floor(resources.cpus_per_worker)))
        return InlineEngine(
            settings.storage, loader_workers=resources.loader_workers, silence_s=settings.silence_s
        )
    # imported only here: most studies do not need Ray Train, which is slow to import
    from kdr.run.engine.gang import Gang, GangSettings

    size = GangSettings(
        num_workers=resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        loader_workers=resources.loader_workers,
        max_trials=resources.max_trials_per_start,
        silence_s=settings.silence_s,
    )
    return Gang(size, settings.storage, settings.study)


def _failure_kind(error: Exception) -> str:
    if isinstance(error, StorageError):
        return STORAGE
    return error.kind if isinstance(error, TrialFailure) else "error"


def _report_of(state: TrialState) -> TrialReport:
    """Returns the report of a trial whose end is already in the log."""
    report = TrialReport(
        attempt=state.attempt, reached=Reached(state.epoch, state.metrics), is_last=True
    )
    if state.state == "completed":
        return report
    return replace(
        report,
        failure_kind=state.last.failure_kind or state.state,
        reason=state.last.reason or "",
    )


def _numbers(metrics: EpochMetrics) -> dict[str, float]:
    """Returns the numbers of an epoch that loggers show, by name."""
    found = metrics.evaluation.metrics if metrics.evaluation else {}
    return {
        "epoch": metrics.epoch,
        **{name: found[name] for name in METRICS if name in found},
        **{f"losses/{name}": value for name, value in metrics.losses.items()},
        **{f"weighted_losses/{name}": value for name, value in metrics.weighted_losses.items()},
        "lr": metrics.lr,
        "images_per_s": metrics.images_per_s,
    }
