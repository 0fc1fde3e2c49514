"""A few steps of a trial, timed, to tell what the whole of it will take. Nothing of it stays."""

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch

from kdr.config.trial import Trial
from kdr.data.loader import Batch
from kdr.errors import OutOfMemory
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from kdr.training.out_of_memory import halve_micro_batch, release_memory

STEPS = 8
"""Steps of training, and of evaluation, that are timed after WARM_UP others."""
WARM_UP = 2


@dataclass(frozen=True)
class ProbedTrial:
    """What one trial will take in this process, by a few of its steps."""

    seconds: float
    """Training and evaluation of all epochs; opening data and teacher is not counted."""
    step_s: float
    """One step of training, its images loaded."""
    evaluation_s: float
    """One evaluation."""
    micro_batch: int | None = None
    """Images that fit into memory at a time, where `micro_batch: auto` had to halve their number;
    None where all did."""


def probe(
    trial: Trial, teacher: Trial | None, *, storage: Storage, loader_workers: int = 0
) -> list[ProbedTrial]:
    """Times a few steps of a trial, and of its teacher before it where that is still to be trained.

    Args:
        trial: the trial.
        teacher: the trial that trains its teacher, if that is not done; a teacher of a few steps
            stands in for it.
        storage: where data and trained teachers lie; nothing else is written there.
        loader_workers: processes that load images.

    Returns:
        The teacher's cost where it is given, then the trial's.

    Raises:
        TrialFailure: if a step fails.
        KdrError: for data or weights that cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        aside = Storage.at(folder)
        # generated images stay, as those of `plan --check-data` do
        storage.data.mkdir(parents=True, exist_ok=True)
        storage.data.expose_at(aside.data)
        if teacher is None and trial.teacher_id is not None:
            for known in (storage.teacher(trial.teacher_id), storage.trial(trial.teacher_id)):
                known.expose_at(aside.local / storage.name_of(known))
        return [_probed(one, aside, loader_workers) for one in (teacher, trial) if one is not None]


def _probed(trial: Trial, storage: Storage, loader_workers: int) -> ProbedTrial:
    training = trial.config.training
    # one epoch, so that it is evaluated, and leaves weights if it is a teacher
    shorter = replace(
        trial,
        config=trial.config.with_changes(
            training=training.with_changes(epochs=1, step_epochs=None)
        ),
    )
    smaller: int | None = None
    while True:
        clock = _Clock()
        try:
            [metrics] = fit(shorter, storage=storage, loader_workers=loader_workers, track=clock)
            break
        except OutOfMemory as failure:
            smaller = halve_micro_batch(trial, storage, failure)
            if smaller is None:
                raise
        release_memory()
    evaluation_s = clock.seconds("evaluation") + max(
        0.0, metrics.eval_seconds - clock.spent("evaluation")
    )
    num_evaluations = -(-training.epochs // training.eval_every_epochs)
    seconds = training.epochs * clock.seconds("epoch 1/1") + num_evaluations * evaluation_s
    return ProbedTrial(seconds, clock.step("epoch 1/1"), evaluation_s, smaller)


@dataclass
class _Clock:
    """Ends each pass over batches after a few of them, and says what all of them would take."""

    _times: dict[str, list[float]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, batches: Iterable[Batch], count: int, purpose: str) -> Iterator[Batch]:
        self._counts[purpose], times = count, self._times.setdefault(purpose, [])
        begin = time.perf_counter()
        for batch in batches:
            yield batch
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            times.append(now - begin)
            begin = now
            if len(times) == WARM_UP + STEPS:
                return

    def spent(self, purpose: str) -> float:
        """Seconds of the batches that were taken."""
        return sum(self._times[purpose])

    def step(self, purpose: str) -> float:
        """Seconds of one batch."""
        times = self._times[purpose]
        return statistics.fmean(times[WARM_UP:] or times)

    def seconds(self, purpose: str) -> float:
        """Seconds of all batches."""
        return self.step(purpose) * self._counts[purpose]
