"""Detects out-of-memory errors, and halves the micro-batch under `training.micro_batch: auto`."""

import contextlib
import gc
from collections.abc import Iterator

import torch

from kdr.config.trial import Trial
from kdr.errors import OutOfMemory
from kdr.storage.layout import Storage
from kdr.training.ranks import ALONE, Ranks

_TEXTS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
)
"""Texts in allocators' errors (torch, CUDA, cuBLAS, C++) that have no separate class.

oneDNN's "could not create a primitive", raised on a CPU without room for generated code, is not
among them: such a process can compile nothing afterwards, so a retry in it would fail too."""


@contextlib.contextmanager
def raising_out_of_memory(num_images: int) -> Iterator[None]:
    """Re-raises out-of-memory errors of GPU and CPU as OutOfMemory, with a hint.

    Args:
        num_images: images of this process in one pass.

    Raises:
        OutOfMemory: for an allocator's error.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own classes are RuntimeErrors
        if isinstance(error, MemoryError) or any(text in str(error) for text in _TEXTS):
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            hint = (
                f" (with {num_images} images at a time; training.micro_batch lowers that)"
                if num_images > 1
                else ""
            )
            raise OutOfMemory(f"{line}{hint}", num_images) from error
        raise


def micro_batch_of(trial: Trial, storage: Storage, ranks: Ranks = ALONE) -> int | None:
    """Returns the images of each rank in one pass; None if `training.micro_batch` is not set.

    Under `auto`, the number that an earlier attempt found, or else the rank's whole share.
    """
    training = trial.config.training
    if training.micro_batch != "auto":
        return training.micro_batch
    path = storage.micro_batch(trial.key)
    # read by one rank, so that all have the same number of passes
    return ranks.from_first(
        lambda: int(path.read_text()) if path.exists() else training.batch_size // ranks.count
    )


def halve_micro_batch(trial: Trial, storage: Storage, failure: OutOfMemory) -> int | None:
    """Halves the micro-batch for all later attempts at a trial.

    Returns:
        Half of the images that did not fit, rounded up. None if the trial has failed: without
        `micro_batch: auto`, or if a single image does not fit.
    """
    if trial.config.training.micro_batch != "auto":
        return None
    path = storage.micro_batch(trial.key)
    if failure.num_images == 1:
        # no number fits on this device; another device starts from the full one
        path.unlink(missing_ok=True)
        return None
    smaller = -(-failure.num_images // 2)
    with path.written_aside() as aside:
        aside.write_text(str(smaller))
    return smaller


def release_memory() -> None:
    """Frees the memory of a failed attempt.

    Call it outside of the `except` block: the error's traceback holds frames, and these hold
    tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
