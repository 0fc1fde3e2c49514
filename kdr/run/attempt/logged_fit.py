"""A trial with its rows in the log: trained by a sweep's actor, as a teacher, or by `kdr train`."""

import contextlib
import logging
import traceback
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypedDict, Unpack

from kdr.config.trial import Trial
from kdr.errors import KdrError, OutOfMemory, StorageError, TrialFailure
from kdr.results.schema import METRICS, EpochRow, Event, Role, TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import CANCELLED, cancel_reason
from kdr.run.attempt.trial_folder import (
    drop_excluded,
    next_attempt,
    quarantine_damaged_checkpoint,
)
from kdr.run.cluster.provenance import provenance
from kdr.run.engine.engine import Engine, Epochs, ProcessLostError
from kdr.run.trial_report import Reached
from kdr.storage.files import StoredPath, storage_errors
from kdr.storage.layout import Storage
from kdr.storage.patience import patiently
from kdr.training.metrics import EpochMetrics
from kdr.training.out_of_memory import halve_micro_batch, release_memory

_log = logging.getLogger(__name__)


class WhereColumns(TypedDict, total=False):
    """Where an attempt ran: fields of its `TrialEvent`s."""

    host: str | None
    device: str | None


class EventColumns(WhereColumns, total=False):
    """Fields of a `TrialEvent` that differ from event to event of one attempt."""

    failure_kind: str
    reason: str | None
    traceback: str
    weights: str


@dataclass
class LoggedTrial:
    """One trial of one study on its way through an engine, with its rows in the log.

    Args:
        trial: what to train.
        log: writer of the study that runs it.
        storage: where checkpoints and weights go.
        role: "teacher" for a trial that trains a study's teacher.
        parameters: settings that the study chose for it, as JSON {path: value}.
        trials_known: how many completed trials the sampler knew when it proposed this one.
    """

    trial: Trial
    log: LogWriter
    storage: Storage
    role: Role = "student"
    parameters: str | None = None
    trials_known: int | None = None
    num_gpus: float | None = None
    """GPUs that it holds; None for a teacher that is trained within its student's attempt, which
    holds them."""
    attempt: int = 0
    """Counts from 1, over all runs of this key; 0 before the first attempt of this object."""
    reached: Reached = field(default_factory=Reached)
    """Progress of the attempt."""

    _where: Mapping[str, str] = field(default_factory=dict, init=False)

    def epochs(self, engine: Engine) -> Epochs:
        """Yields the trial's epochs. Each is in the log before it is yielded.

        If the study trains its teacher, and the teacher has no weights yet, it is trained first. If
        a trial with `micro_batch: auto` runs out of memory, the next attempt starts within this
        iteration, with half as many images at a time; like any resumed trial it yields all epochs
        from the first.

        Raises:
            TrialFailure: if the trial failed or was cancelled; its event is in the log by then.
            ProcessLostError: if a process that trained it died; it can resume from its checkpoint.
        """
        while (yield from self._attempt(engine)):
            # only after `_attempt` returned: its frames held the tensors of the failed attempt
            release_memory()

    def event(self, event: Event, **columns: Unpack[EventColumns]) -> None:
        """Writes one event of this trial, with its progress."""
        more: dict[str, Any] = {
            **self.reached.columns(),
            **provenance(),
            **self._where,  # of the workers, where this process only drives them
            **columns,
        }
        self.log.event(
            TrialEvent(
                study=self.log.study,
                key=self.trial.key,
                event=event,
                config=self.trial.config.model_dump_json(),
                attempt=self.attempt,
                role=self.role,
                seed=self.trial.config.seed,
                parameters=self.parameters,
                trials_known=self.trials_known,
                data_id=self.trial.data_id,
                teacher_id=self.trial.teacher_id,
                num_gpus=self.num_gpus,
                **more,
            )
        )

    def _attempt(self, engine: Engine) -> Generator[EpochMetrics, None, bool]:
        """Runs one attempt; returns whether it ran out of memory and another one must follow."""
        folder = self.storage.trial(self.trial.key)
        with storage_errors(folder):
            quarantined = patiently(self._prepare)
        if (folder / "checkpoint.pt").exists():
            self.event("resumed")
        else:
            self.event("started", reason=quarantined)
        with self._failures_logged():
            # inside: without its teacher, this trial has failed, too
            train_missing_teacher(self.trial, self.log, self.storage, engine)
            try:
                yield from self._logged_epochs(engine, folder)
            except OutOfMemory as failure:
                return self._retries_with_less(failure, folder)
        return False

    def _prepare(self) -> str | None:
        """Prepares the trial's folder for its next attempt; returns what happened to a damaged
        checkpoint.
        """
        key, folder = self.trial.key, self.storage.trial(self.trial.key)
        folder.mkdir(parents=True, exist_ok=True)
        folder.remove_orphans()
        if not self.attempt:
            # a request to cancel is for the attempt that ran when it was made, not for this one
            self.storage.cancellation(key).unlink(missing_ok=True)
        drop_excluded(self.storage, key)
        quarantined = quarantine_damaged_checkpoint(self.storage, key)
        self.attempt, self.reached = next_attempt(self.storage, key), Reached()
        return quarantined

    def _logged_epochs(self, engine: Engine, folder: StoredPath) -> Epochs:
        with contextlib.closing(engine.fit(self.trial)) as epochs:
            for metrics in epochs:
                self._where = engine.where
                self.log.epoch(self._epoch_row(metrics))
                self.reached = self.reached.after(metrics)
                if metrics.is_last:
                    self.event("completed", weights=self.storage.name_of(folder / "student.pt"))
                    # The engine removes the checkpoint when it is asked for one more epoch. That is
                    # safe only now: a process killed before this event resumes from the checkpoint.
                    next(epochs, None)
                elif (reason := cancel_reason(self.storage, self.trial.key)) is not None:
                    raise TrialFailure(CANCELLED, reason)
                yield metrics

    def _retries_with_less(self, failure: OutOfMemory, folder: StoredPath) -> bool:
        """Halves the micro-batch of a trial that ran out of memory, for its next attempt.

        Raises:
            OutOfMemory: if its settings fix the micro-batch, or one image is already too many.
        """
        with storage_errors(folder):
            smaller = patiently(partial(halve_micro_batch, self.trial, self.storage, failure))
        if smaller is None:
            raise failure
        reason = (
            f"out of memory with {failure.num_images} images at a time; continues with {smaller}"
        )
        _log.warning("trial %s: %s", self.trial.key, reason)
        self.event(
            "interrupted",
            failure_kind=failure.kind,
            reason=reason,
            traceback=traceback.format_exc(),
        )
        return True

    def _epoch_row(self, metrics: EpochMetrics) -> EpochRow:
        evaluation = metrics.evaluation
        found = {} if evaluation is None else evaluation.metrics
        values: dict[str, Any] = {name: found.get(name) for name in METRICS}
        return EpochRow(
            **values,
            study=self.log.study,
            key=self.trial.key,
            attempt=self.attempt,
            ap_per_class=None if evaluation is None else evaluation.ap_per_class,
            epoch=metrics.epoch,
            step=metrics.step,
            losses=metrics.losses,
            weighted_losses=metrics.weighted_losses,
            gradient_norms=metrics.gradient_norms,
            extras=metrics.extras,
            lr=metrics.lr,
            seconds=metrics.seconds,
            eval_seconds=metrics.eval_seconds,
            images_per_s=metrics.images_per_s,
            images_seen=metrics.images_seen,
            peak_memory_bytes=metrics.peak_memory_bytes,
            first_batch_hash=metrics.first_batch_hash,
        )

    @contextlib.contextmanager
    def _failures_logged(self) -> Iterator[None]:
        """Logs the failure of an attempt, unless its process was lost or the storage failed."""
        try:
            yield
        except ProcessLostError:
            raise  # as if this process had died: the driver decides whether the trial resumes
        except StorageError:
            # Not the trial's fault, and the log cannot be written either. The study ends; the same
            # command resumes it.
            raise
        except TrialFailure as failure:
            if failure.kind == CANCELLED:
                self.event("cancelled", reason=failure.reason)
                raise
            self.event(
                "failed",
                failure_kind=failure.kind,
                reason=failure.reason,
                traceback=traceback.format_exc(),
            )
            raise
        except Exception as error:
            self.event(
                "failed",
                failure_kind="bad_input" if isinstance(error, KdrError) else "error",
                reason=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
            raise


def train_missing_teacher(trial: Trial, log: LogWriter, storage: Storage, engine: Engine) -> None:
    """Trains the teacher of a trial if the study trains its teacher and there are no weights yet.

    Processes of one machine that need the same teacher wait for each other (`flock`): the first
    trains it, the others find its weights.
    """
    teacher = teacher_of(trial)
    if teacher is None or has_weights(teacher, storage):
        return
    import fcntl

    lock = storage.lock(teacher.key)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        # check again, now that the lock is held: another process may have trained it meanwhile
        if not has_weights(teacher, storage):
            for _ in LoggedTrial(teacher, log, storage, role="teacher").epochs(engine):
                pass


def teacher_of(trial: Trial) -> Trial | None:
    """Returns the trial that trains a trial's teacher; None if the teacher comes with weights or is
    not needed.
    """
    config = trial.config.teacher_trial()
    if config is None:
        return None
    assert trial.teacher_id is not None
    return Trial(key=trial.teacher_id, config=config, data_id=trial.data_id)


def has_weights(trial: Trial, storage: Storage) -> bool:
    """Returns whether a trial's student was trained and kept, and the trial is not excluded."""
    return (storage.trial(trial.key) / "student.pt").exists() and not storage.restart_marker(
        trial.key
    ).exists()
