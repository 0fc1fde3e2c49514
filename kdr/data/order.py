"""The order of training images: which are in each global batch of an epoch, and which of those one
rank loads.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from kdr.randomness import address


class TrainingOrder:
    """A batch sampler: yields this rank's (epoch, position) pairs of each global batch of `epoch`,
    which is set from outside.
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
    """The positions of each global batch of an epoch: `num_images // batch_size` batches, or one if
    there are fewer images.

    Args:
        num_images: images of the training set.
        batch_size: images of a global batch.
        seed: the trial's seed.
        epoch: the epoch.
        portrait: which images are higher than wide. With it, a batch holds images of one kind; only
            the last batch may mix what both kinds leave over, so that grouping changes neither the
            number of steps nor how many images are seen.
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
    left = [*groups[False], *groups[True]]
    if len(left) >= batch_size or not batches:
        batches.append(left[:batch_size])
    return batches
