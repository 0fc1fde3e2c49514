"""Times a few steps of a trial to predict its duration; leaves nothing behind."""

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
"""Steps of training, and of evaluation, to time after the warm-up."""
WARM_UP = 2
"""Steps before the timed ones: the first allocate memory and choose kernels."""


@dataclass(frozen=True)
class ProbedTrial:
    """The predicted duration of one trial in this process."""

    seconds: float
    """Training and evaluation of all epochs, without opening data and teacher."""
    step_s: float
    """One training step, including the loading of its images."""
    evaluation_s: float
    """One evaluation."""
    micro_batch: int | None = None
    """Images that fit into memory at once, if `micro_batch: auto` had to halve their number; else
    None."""


def probe(
    trial: Trial, teacher: Trial | None, *, storage: Storage, loader_workers: int = 0
) -> list[ProbedTrial]:
    """Times a few steps of a trial, and before that of its teacher if it is not yet trained.

    Args:
        trial: the trial.
        teacher: the trial that trains its teacher, or None if that trial is complete. If given, the
            trial is timed with a teacher of a few steps.
        storage: holds data and trained teachers; only generated data is written there.
        loader_workers: processes that load images.

    Returns:
        The teacher's times if given, then the trial's.

    Raises:
        TrialFailure: if a step fails.
        KdrError: for unusable data or weights.
    """
    # in a temporary storage, so that no log, checkpoint or claim of the real one is touched
    with tempfile.TemporaryDirectory() as folder:
        aside = Storage.at(folder)
        # generated images are kept: the trial needs the same images
        storage.data.mkdir(parents=True, exist_ok=True)
        storage.data.expose_at(aside.data)
        if teacher is None and trial.teacher_id is not None:
            for known in (storage.teacher(trial.teacher_id), storage.trial(trial.teacher_id)):
                known.expose_at(aside.local / storage.name_of(known))
        return [_probed(one, aside, loader_workers) for one in (teacher, trial) if one is not None]


def _probed(trial: Trial, storage: Storage, loader_workers: int) -> ProbedTrial:
    training = trial.config.training
    # one epoch, so that it evaluates, and leaves weights if it is a teacher
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
    # batches of the evaluation, plus the scoring that follows them
    evaluation_s = clock.seconds("evaluation") + max(
        0.0, metrics.eval_seconds - clock.spent("evaluation")
    )
    num_evaluations = -(-training.epochs // training.eval_every_epochs)
    seconds = training.epochs * clock.seconds("epoch 1/1") + num_evaluations * evaluation_s
    return ProbedTrial(seconds, clock.step("epoch 1/1"), evaluation_s, smaller)


@dataclass
class _Clock:
    """Stops each pass over batches after a few of them, and extrapolates to all."""

    _times: dict[str, list[float]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, batches: Iterable[Batch], count: int, purpose: str) -> Iterator[Batch]:
        self._counts[purpose], times = count, self._times.setdefault(purpose, [])
        begin = time.perf_counter()
        for batch in batches:
            yield batch
            # kernels run asynchronously: without this, a step would be timed by its launches
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            times.append(now - begin)
            begin = now
            if len(times) == WARM_UP + STEPS:
                return

    def spent(self, purpose: str) -> float:
        """Returns the seconds of the batches that ran."""
        return sum(self._times[purpose])

    def step(self, purpose: str) -> float:
        """Returns the seconds of one batch."""
        times = self._times[purpose]
        return statistics.fmean(times[WARM_UP:] or times)

    def seconds(self, purpose: str) -> float:
        """Returns the seconds that all batches would take."""
        return self.step(purpose) * self._counts[purpose]
