"""Trains one trial, from its first epoch or its last checkpoint to its end.

Everything that trains a detector iterates over `fit`.
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterable

import torch

from kdr.config.trial import Trial, TrialConfig
from kdr.data.loader import Batch, first_batch_hash
from kdr.detectors.checkpoint_files import save_student
from kdr.errors import StorageError
from kdr.randomness import address
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.training.calibration import calibrate
from kdr.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from kdr.training.distilled_student import gradient_norms, root_sum_of_squares
from kdr.training.evaluation import evaluate
from kdr.training.loss_sums import LossSums
from kdr.training.metrics import EpochMetrics, Evaluation
from kdr.training.optimisation import clip_gradients
from kdr.training.out_of_memory import micro_batch_of, raising_out_of_memory
from kdr.training.ranks import ALONE, Ranks
from kdr.training.shared_parts import SharedParts
from kdr.training.student import export_facts
from kdr.training.training_state import Pass, TrainingState, prepare

Track = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
"""Wraps the batches of an epoch to show progress: (batches, number, purpose) -> the same
batches."""

STEPS_PER_LOSS_CHECK = 50
"""Steps between checks that the losses are finite; each check waits for the device."""


def untracked(batches: Iterable[Batch], _count: int, _purpose: str) -> Iterable[Batch]:
    """Returns the batches, without showing progress."""
    return batches


def fit(
    trial: Trial,
    *,
    storage: Storage,
    shared: SharedParts | None = None,
    device: torch.device | None = None,
    loader_workers: int = 0,
    track: Track = untracked,
    ranks: Ranks = ALONE,
) -> Generator[EpochMetrics, None, None]:
    """Trains one trial and yields the metrics of each epoch, from its first to its last.

    A trial with a checkpoint first yields the stored metrics of its finished epochs, then resumes.
    The state is saved before an epoch is yielded, so stopping the iteration loses nothing. The last
    epoch leaves the student's weights in the trial's folder as `student.pt`. Its checkpoint is
    removed on the next iteration, so that the caller has logged the last epoch by then.

    Args:
        trial: the trial. If the study trains its teacher, the teacher's trial must be complete.
        storage: where checkpoints and weights are stored.
        shared: data sets and teachers opened by earlier trials of this process; new by default.
        device: where to train; by default a GPU if available.
        loader_workers: processes that load images.
        track: shows progress within an epoch.
        ranks: the processes that train this trial together. Each iterates over its own `fit()` and
            gets the same metrics; rank 0 writes the files. If one rank raises, the others wait for
            it forever: end them.

    Raises:
        OutOfMemory: if the trial's images do not fit; with `micro_batch: auto` it can be retried
            with fewer at a time (`kdr.training.out_of_memory.halve_micro_batch`).
        TrialFailure: of kind `non_finite_loss`, `not_calibrated` or `bad_data`: the trial has
            failed, its study continues.
        KdrError: for unusable data, weights or checkpoint.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared = shared or SharedParts(storage)
    folder = storage.trial(trial.key)
    micro_batch = micro_batch_of(trial, storage, ranks)
    with raising_out_of_memory(micro_batch or trial.config.training.batch_size // ranks.count):
        state = prepare(trial, shared, device, loader_workers, ranks, micro_batch)
        try:
            progress = load_checkpoint(folder / "checkpoint.pt", state.parts())
            _check_same_start(folder, progress, ranks)
            # a resumed trial takes them from its checkpoint: a trained student would yield others
            if progress.step == 0:
                calibrate(state, trial.config.seed)
            yield from progress.history
            while progress.epoch < trial.config.training.epochs:
                metrics, progress = _run_epoch(trial.config, state, progress, shared, track)
                if ranks.is_first:
                    _save(folder, trial, state, progress, is_last=metrics.is_last)
                yield metrics
            if ranks.is_first:
                storage.forget_progress(trial.key)
        finally:
            state.close()


def _run_epoch(
    config: TrialConfig,
    state: TrainingState,
    progress: Progress,
    shared: SharedParts,
    track: Track,
) -> tuple[EpochMetrics, Progress]:
    epoch, begin = progress.epoch + 1, time.perf_counter()
    if state.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(state.device)
    ranks = state.ranks
    # Seeded per epoch, not per trial, so that a resumed trial draws the same numbers as an
    # uninterrupted one. Rank 0 uses the same address as a single process.
    torch.manual_seed(address(config.seed, "epoch", epoch, *([ranks.rank] if ranks.rank else [])))
    state.parallel.train()
    sums = LossSums(ranks)
    norms: dict[str, float] = {}
    batch_hash, step, images = "", progress.step, 0
    batches = track(
        state.training.epoch(epoch), len(state.training), f"epoch {epoch}/{config.training.epochs}"
    )
    for number, batch in enumerate(batches):
        if number == 0:
            batch_hash = first_batch_hash(batch)
        # in the last step, where ramps have risen most
        norms = _step(
            config, state, batch, step, sums, with_norms=number == len(state.training) - 1
        )
        step, images = step + 1, images + len(batch.image_ids)
        if step % STEPS_PER_LOSS_CHECK == 0:
            sums.check_finite(epoch, step)
    sums.check_finite(epoch, step)
    # before evaluation and checkpoint, so that both see one set of running statistics
    ranks.share_buffers(state.model)
    lr = float(state.schedule.get_last_lr()[0])
    losses, weighted = sums.means()
    seconds = time.perf_counter() - begin
    is_last = epoch == config.training.epochs
    evaluation, eval_seconds = None, 0.0
    if is_last or epoch % config.training.eval_every_epochs == 0:
        evaluation, eval_seconds = _evaluate(config, state, shared, track)
    metrics = EpochMetrics(
        epoch=epoch,
        step=step,
        losses=losses,
        weighted_losses=weighted,
        gradient_norms=norms,
        lr=lr,
        seconds=seconds,
        eval_seconds=eval_seconds,
        images_per_s=images * ranks.count / seconds,
        images_seen=progress.images_seen + images * ranks.count,
        peak_memory_bytes=_peak_memory_bytes(state),
        first_batch_hash="-".join(ranks.gathered(batch_hash)),
        extras=state.numbers() | sums.mean_units(),
        evaluation=evaluation,
        is_last=is_last,
    )
    return metrics, Progress(epoch, step, metrics.images_seen, (*progress.history, metrics))


def _step(
    config: TrialConfig,
    state: TrainingState,
    batch: Batch,
    step: int,
    sums: LossSums,
    *,
    with_norms: bool,
) -> dict[str, float]:
    state.optimizer.zero_grad(set_to_none=True)
    norms = [
        _add_gradients(state, one, step, sums, with_norms=with_norms) for one in state.passes(batch)
    ]
    # clipping needs gradients in their own scale, not multiplied for fp16
    state.scaler.unscale_(state.optimizer)
    clip_gradients(
        (state.model.student.parameters(), state.model.methods.parameters()),
        config.training.clip_norm,
    )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    # OneCycleLR raises ValueError for a step beyond its last
    if step + 1 < config.training.epochs * len(state.training):
        state.schedule.step()
    return root_sum_of_squares(norms)


def _add_gradients(
    state: TrainingState, one: Pass, step: int, sums: LossSums, *, with_norms: bool
) -> dict[str, float]:
    """Runs one forward and backward pass; only gradients and sums of losses outlive it."""
    # ranks average once, in the last pass: gradients of earlier passes have added up by then
    with contextlib.nullcontext() if one.is_last else state.ranks.unsynchronised(state.parallel):
        losses = state.losses(one, step)
        total = losses.total()
        norms = gradient_norms(losses, state.ranks, one.weight) if with_norms else {}
        # no product with 1: a batch in one pass stays bit-identical to a plain training loop
        torch.autograd.backward(
            state.scaler.scale(total if one.weight == 1 else one.weight * total)
        )
    sums.add(losses, one.weight)
    return norms


def _evaluate(
    config: TrialConfig, state: TrainingState, shared: SharedParts, track: Track
) -> tuple[Evaluation, float]:
    begin = time.perf_counter()
    index = shared.splits(config.data).evaluation
    batches = track(iter(state.evaluation), len(state.evaluation), "evaluation")
    found = evaluate(
        state.model.student, batches, index, precision=state.precision, ranks=state.ranks
    )
    return found, time.perf_counter() - begin


def _save(
    folder: StoredPath, trial: Trial, state: TrainingState, progress: Progress, *, is_last: bool
) -> None:
    if is_last:
        save_student(folder / "student.pt", state.model.student, extra=export_facts(trial))
    else:
        save_checkpoint(folder / "checkpoint.pt", progress, state.parts())


def _check_same_start(folder: StoredPath, progress: Progress, ranks: Ranks) -> None:
    """Raises StorageError if ranks on different nodes see different checkpoints."""
    epochs = ranks.gathered(progress.epoch)
    if len(set(epochs)) > 1:
        raise StorageError(
            f"{folder}: every node must see the same files, got checkpoints of epochs {epochs} on "
            "the ranks. Use a storage shared by all nodes"
        )


def _peak_memory_bytes(state: TrainingState) -> int | None:
    """Returns the peak memory of the rank that used the most; None on a CPU."""
    if state.device.type != "cuda":
        return None
    return max(state.ranks.gathered(torch.cuda.max_memory_allocated(state.device)))
