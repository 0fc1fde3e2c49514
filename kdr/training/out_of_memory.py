"""Out of memory: told from other errors, and answered with fewer images at a time where
`training.micro_batch: auto` says so.
"""

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
"""What allocators of torch, CUDA and its libraries write in errors that have no class of their own.
oneDNN's "could not create a primitive", where it has no room for code on a CPU, is not among them:
the process compiles nothing any more after that."""


@contextlib.contextmanager
def out_of_memory_named(num_images: int) -> Iterator[None]:
    """Names out-of-memory errors of GPU and CPU as what they are.

    Args:
        num_images: images of this process in one pass.

    Raises:
        OutOfMemory: for an error of an allocator.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own classes are RuntimeErrors
        if isinstance(error, MemoryError) or any(text in str(error) for text in _TEXTS):
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            way_out = (
                f" (with {num_images} images at a time, which training.micro_batch lowers)"
                if num_images > 1
                else ""
            )
            raise OutOfMemory(f"{line}{way_out}", num_images) from error
        raise


def micro_batch_of(trial: Trial, storage: Storage, ranks: Ranks = ALONE) -> int | None:
    """Images of each rank in one pass: as set, as an earlier attempt found by `auto`, or all; None
    where it is not set.
    """
    training = trial.config.training
    if training.micro_batch != "auto":
        return training.micro_batch
    path = storage.micro_batch(trial.key)
    return ranks.from_first(
        lambda: int(path.read_text()) if path.exists() else training.batch_size // ranks.count
    )


def halve_micro_batch(trial: Trial, storage: Storage, failure: OutOfMemory) -> int | None:
    """Half as many images as did not fit, rounded up and kept for all later attempts; None where
    the trial has failed.

    It has where its settings do not say `auto`, and where one image does not fit.
    """
    if trial.config.training.micro_batch != "auto":
        return None
    path = storage.micro_batch(trial.key)
    if failure.num_images == 1:
        path.unlink(missing_ok=True)  # nothing was found: on another device all is tried again
        return None
    smaller = -(-failure.num_images // 2)
    with path.written_aside() as aside:
        aside.write_text(str(smaller))
    return smaller


def release_memory() -> None:
    """Gives back what a failed attempt held. Its error must be let go of before: frames in a
    traceback hold tensors.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
