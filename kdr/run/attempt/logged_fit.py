"""A trial that leaves its rows in the log: the same for a sweep's actor, a teacher, and the command
`train`.
"""

import contextlib
import logging
import traceback
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kdr.config.trial import Trial
from kdr.errors import KdrError, OutOfMemory, StorageError, TrialFailure
from kdr.results.check import LogProblem, quarantine
from kdr.results.saved_weights import file_damage
from kdr.results.schema import METRICS, EpochRow, Role, TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import CANCELLED, asked_to_end
from kdr.run.cluster.provenance import provenance
from kdr.run.engine.engine import Engine, ProcessLostError
from kdr.storage.files import StoredPath, storage_errors
from kdr.storage.layout import Storage
from kdr.storage.patience import patiently
from kdr.training.metrics import EpochMetrics
from kdr.training.out_of_memory import halve_micro_batch, release_memory

_log = logging.getLogger(__name__)


@dataclass
class LoggedTrial:
    """One trial of one study on its way through an engine, with its rows in the log.

    Args:
        trial: what to train.
        log: writer of the study that runs it.
        storage: where everything lies.
        role: "teacher" for a trial that trains a study's teacher.
        parameters: what the search drew, as JSON.
        trials_known: how many ended trials the sampler knew at that draw.
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
    """Counts from 1, over all runs of this key."""
    reached: dict[str, Any] = field(default_factory=dict)
    """Columns of the trial's next event: last epoch, its metrics, the best epoch, seconds so
    far."""

    _where: dict[str, Any] = field(default_factory=dict)

    def epochs(self, engine: Engine) -> Iterator[EpochMetrics]:
        """Iterates over the trial's epochs, each of which is in the log before it is yielded.

        A teacher that the study trains and that nobody has trained yet is trained first. After an
        error of memory a trial of `micro_batch: auto` goes on with fewer images at a time, as its
        next attempt: from its first epoch, as after any resume.

        Raises:
            TrialFailure: when the trial cannot go on; its event is in the log by then.
            ProcessLostError: when a process died that trained it; the trial can go on from its
                checkpoint.
        """
        while (yield from self._attempt(engine)):
            release_memory()

    def event(self, event: Any, **columns: Any) -> None:
        """Writes one event of this trial, with what it has reached."""
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
                **{**self.reached, **provenance(), **self._where, **columns},
            )
        )

    def _attempt(self, engine: Engine) -> Generator[EpochMetrics, None, bool]:
        """One attempt; whether it ran out of memory and another one is to follow."""
        folder = self.storage.trial(self.trial.key)
        with storage_errors(folder):
            torn = patiently(self._prepare)
        if (folder / "checkpoint.pt").exists():
            self.event("resumed")
        else:
            self.event("started", reason=torn)
        with self._failures_logged():
            train_missing_teacher(self.trial, self.log, self.storage, engine)
            try:
                with contextlib.closing(engine.fit(self.trial)) as epochs:  # type: ignore[type-var]
                    for metrics in epochs:
                        self._where = dict(engine.where)
                        self._note(metrics)
                        if metrics.is_last:
                            self.event(
                                "completed", weights=self.storage.name_of(folder / "student.pt")
                            )
                            next(epochs, None)  # only now is its checkpoint not needed any more
                        elif (reason := asked_to_end(self.storage, self.trial.key)) is not None:
                            raise TrialFailure(CANCELLED, reason)
                        yield metrics
            except OutOfMemory as failure:
                with storage_errors(folder):
                    smaller = patiently(
                        partial(halve_micro_batch, self.trial, self.storage, failure)
                    )
                if smaller is None:
                    raise
                reason = (
                    f"out of memory with {failure.num_images} images at a time; goes on with "
                    f"{smaller}"
                )
                _log.warning("trial %s: %s", self.trial.key, reason)
                self.event(
                    "interrupted",
                    failure_kind=failure.kind,
                    reason=reason,
                    traceback=traceback.format_exc(),
                )
                return True
        return False

    def _prepare(self) -> str | None:
        """Makes the trial's folder ready for its next attempt; says what became of a checkpoint
        that it cannot go on from.
        """
        key, folder = self.trial.key, self.storage.trial(self.trial.key)
        folder.mkdir(parents=True, exist_ok=True)
        folder.remove_orphans()
        if not self.attempt:
            # it was meant for an attempt before this object's
            self.storage.cancellation(key).unlink(missing_ok=True)
        _drop_excluded(self.storage, key)
        torn = _torn_checkpoint_moved(self.storage, key)
        self.attempt, self.reached = _next_attempt(self.storage, key), {}
        return torn

    def _note(self, metrics: EpochMetrics) -> None:
        found = metrics.evaluation.metrics if metrics.evaluation else None
        values: dict[str, Any] = (
            {} if found is None else {name: found.get(name) for name in METRICS}
        )
        self.log.epoch(
            EpochRow(
                **values,
                study=self.log.study,
                key=self.trial.key,
                attempt=self.attempt,
                ap_per_class=metrics.evaluation.ap_per_class if metrics.evaluation else None,
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
        )
        self.reached |= {"epoch": metrics.epoch, **values}
        self.reached["seconds"] = (
            self.reached.get("seconds", 0.0) + metrics.seconds + metrics.eval_seconds
        )
        ap = values.get("AP")
        if ap is not None and ap > self.reached.get("best_AP", -1.0):
            self.reached |= {"best_epoch": metrics.epoch, "best_AP": ap}

    @contextlib.contextmanager
    def _failures_logged(self) -> Iterator[None]:
        try:
            yield
        except ProcessLostError:
            raise  # as if this process had died: whoever runs it decides whether the trial goes on
        except StorageError:
            # not the trial's fault, and the log cannot be written either: the study ends, and the
            # same command continues
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
            kind = "bad_input" if isinstance(error, KdrError) else "error"
            self.event(
                "failed",
                failure_kind=kind,
                reason=f"{type(error).__name__}: {error}",
                traceback=traceback.format_exc(),
            )
            raise


def train_missing_teacher(trial: Trial, log: LogWriter, storage: Storage, engine: Engine) -> None:
    """Trains the teacher of a trial if the study is to train it and nobody has. Processes that need
    the same one wait.
    """
    teacher = teacher_of(trial)
    if teacher is None or has_weights(teacher, storage):
        return
    import fcntl

    lock = storage.lock(teacher.key)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not has_weights(teacher, storage):
            for _ in LoggedTrial(teacher, log, storage, role="teacher").epochs(engine):
                pass


def teacher_of(trial: Trial) -> Trial | None:
    """The trial that trains a trial's teacher; None where the teacher has weights or is not
    needed.
    """
    config = trial.config.teacher_trial()
    if config is None:
        return None
    assert trial.teacher_id is not None
    return Trial(key=trial.teacher_id, config=config, data_id=trial.data_id)


def has_weights(trial: Trial, storage: Storage) -> bool:
    """Whether a trial's student has been trained and kept, and is not excluded."""
    return (storage.trial(trial.key) / "student.pt").exists() and not storage.restart_marker(
        trial.key
    ).exists()


def _drop_excluded(storage: Storage, key: str) -> None:
    """Removes what earlier attempts at an excluded trial have left, so that it is trained from its
    first epoch.
    """
    mark = storage.restart_marker(key)
    if mark.exists():
        storage.forget_weights(key)
        mark.unlink()


def _torn_checkpoint_moved(storage: Storage, key: str) -> str | None:
    """Moves a damaged checkpoint into the quarantine, and says so. Its trial begins anew, and
    computes the same again.
    """
    checkpoint = storage.trial(key) / "checkpoint.pt"
    what = file_damage(checkpoint) if checkpoint.exists() else None
    if what is None:
        return None
    [moved] = quarantine(storage, LogProblem("damaged", str(checkpoint), what, (checkpoint,)))
    return f"begun anew: its checkpoint {what}; it is now {moved}"


def num_attempts(storage: Storage, key: str) -> int:
    """How often a trial has been begun. Counted in its folder: a crashed trial is repeated before
    the log is read again.
    """
    path = _attempts(storage, key)
    return int(path.read_text()) if path.exists() else 0


def _next_attempt(storage: Storage, key: str) -> int:
    attempt = num_attempts(storage, key) + 1
    with _attempts(storage, key).written_aside() as aside:
        aside.write_text(str(attempt))
    return attempt


def _attempts(storage: Storage, key: str) -> StoredPath:
    return storage.trial(key) / "attempts"
