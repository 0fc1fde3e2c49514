"""The order of training images: global batches of an epoch, and each rank's share."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from kdr.randomness import address


class TrainingOrder:
    """Batch sampler that yields this rank's (epoch, position) pairs of each global batch.

    The caller sets `epoch` before iterating.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        portrait: Sequence[bool] | None,
        rank: int,
        num_ranks: int,
    ) -> None:
        self.epoch = 0
        self.num_batches = max(num_images // batch_size, 1)
        self._batches = partial(
            training_order, num_images, batch_size, seed=seed, portrait=portrait
        )
        # every num_ranks-th image, so that a global batch is the same set for any world size
        self._share = slice(rank, None, num_ranks)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self._batches(epoch=epoch):
            yield [(epoch, position) for position in batch[self._share]]


def training_order(
    num_images: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    portrait: Sequence[bool] | None = None,
) -> list[list[int]]:
    """Returns the positions in each global batch of an epoch.

    There are `num_images // batch_size` batches, or one if there are fewer images.

    Args:
        num_images: number of training images.
        batch_size: images in a global batch.
        seed: the trial's seed.
        epoch: number of the epoch.
        portrait: which images are taller than wide; None disables grouping. With grouping, a batch
            holds images of one orientation. Only the last batch may mix the remainders, so that
            grouping changes neither the number of steps nor the number of images seen.
    """
    generator = torch.Generator().manual_seed(address(seed, "order", epoch))
    shuffled = torch.randperm(num_images, generator=generator).tolist()
    batches: list[list[int]] = []
    groups: dict[bool, list[int]] = {False: [], True: []}
    for position in shuffled:
        group = groups[portrait is not None and portrait[position]]
        group.append(position)
        if len(group) == batch_size:
            batches.append(group.copy())
            group.clear()
    # Each group has fewer than batch_size images left, so both together fill at most one batch.
    remainder = [*groups[False], *groups[True]]
    if len(remainder) >= batch_size or not batches:
        batches.append(remainder[:batch_size])
    return batches
