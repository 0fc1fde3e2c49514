"""One trial, from its first epoch or its last checkpoint to its end. Everything that trains a
detector iterates over this.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

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
from kdr.training.out_of_memory import micro_batch_of, out_of_memory_named
from kdr.training.ranks import ALONE, Ranks
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import Pass, TrainingState, prepare

Track = Callable[[Iterable[Batch], int, str], Iterable[Batch]]
"""Wraps the batches of an epoch to show progress: (batches, how many, what they are for) -> the
same batches."""

STEPS_PER_LOSS_CHECK = 50
"""Steps between looks at whether the loss is still finite; each look waits for the device."""


def untracked(batches: Iterable[Batch], _count: int, _purpose: str) -> Iterable[Batch]:
    """Shows no progress."""
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
) -> Iterator[EpochMetrics]:
    """Trains one trial and yields what each epoch measured, from its first to its last.

    A trial that has a checkpoint yields the epochs before it at once, as they were measured, and
    goes on after it. The state is saved before an epoch is yielded, so whoever stops iterating
    loses nothing. After the last epoch the student's weights lie in the trial's folder as
    `student.pt`; the checkpoint before it is removed when a further epoch is asked for, by which
    time the last one has been noted.

    Args:
        trial: what to train. If the study trains its teacher, that trial has been run before.
        storage: where checkpoints and weights go.
        shared: data sets and teachers of earlier trials of this process; new ones are opened
            without it.
        device: where to train; a GPU if there is one.
        loader_workers: processes that load images.
        track: shows progress within an epoch.
        ranks: the processes that train this trial together, each of which iterates over its own
            `fit()` and gets the same metrics; rank 0 writes the files. Where one raises alone, the
            others wait for it in vain: end them.

    Raises:
        OutOfMemory: where the trial's images do not fit; with `micro_batch: auto` it can go on with
            fewer at a time (`kdr.training.out_of_memory.halve_micro_batch`).
        TrialFailure: of kind `non_finite_loss`, `not_calibrated` or `bad_data`; the trial is over,
            a study goes on.
        KdrError: for data, weights or a checkpoint that cannot be used.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shared = shared or SharedParts(storage)
    folder = storage.trial(trial.key)
    micro_batch = micro_batch_of(trial, storage, ranks)
    with out_of_memory_named(micro_batch or trial.config.training.batch_size // ranks.count):
        state = prepare(trial, shared, device, loader_workers, ranks, micro_batch)
        try:
            progress = load_checkpoint(folder / "checkpoint.pt", state.parts())
            _check_same_start(folder, progress, ranks)
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
        # in the last step, where ramps have come furthest
        norms = _step(
            config, state, batch, step, sums, with_norms=number == len(state.training) - 1
        )
        step, images = step + 1, images + len(batch.image_ids)
        if step % STEPS_PER_LOSS_CHECK == 0:
            sums.check_finite(epoch, step)
    sums.check_finite(epoch, step)
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
    state.scaler.unscale_(state.optimizer)
    clip_gradients(
        (state.model.student.parameters(), state.model.methods.parameters()),
        config.training.clip_norm,
    )
    state.scaler.step(state.optimizer)
    state.scaler.update()
    # one-cycle refuses a step beyond its last
    if step + 1 < config.training.epochs * len(state.training):
        state.schedule.step()
    return root_sum_of_squares(norms)


def _add_gradients(
    state: TrainingState, one: Pass, step: int, sums: LossSums, *, with_norms: bool
) -> dict[str, float]:
    """One forward and backward pass, of which nothing but gradients and sums is held afterwards."""
    with contextlib.nullcontext() if one.is_last else state.ranks.apart(state.parallel):
        losses = state.losses(one, step)
        total = losses.total()
        norms = gradient_norms(losses, state.ranks, one.weight) if with_norms else {}
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
        save_student(folder / "student.pt", state.model.student, extra={"trial": trial.key})
    else:
        save_checkpoint(folder / "checkpoint.pt", progress, state.parts())


def _check_same_start(folder: StoredPath, progress: Progress, ranks: Ranks) -> None:
    """Refuses to train where ranks on different nodes do not see the same checkpoint."""
    epochs = ranks.gathered(progress.epoch)
    if len(set(epochs)) > 1:
        raise StorageError(
            f"{folder}: every node must see the same files, got checkpoints of the epochs {epochs} "
            "on the ranks. Use a storage that all nodes share"
        )


def _peak_memory_bytes(state: TrainingState) -> int | None:
    """Of the rank that took most."""
    if state.device.type != "cuda":
        return None
    return max(state.ranks.gathered(torch.cuda.max_memory_allocated(state.device)))
