"""The standard deviation of each teacher level, by which KDR's `normalisation` divides."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdr.distill.masks import is_padded, valid_cells


class LevelStd:
    """Standard deviation of each feature level, over all channels and valid cells of many batches.

    In double precision, on the device: nothing waits for a GPU before `result`. Batches are merged
    by their means and sums of squared deviations (Chan, Golub and LeVeque, 1979), which keeps
    precision where features have a large mean; a sum of squares would lose it.
    """

    def __init__(self) -> None:
        # number of values, mean, sum of squared deviations
        self._levels: list[tuple[Tensor, Tensor, Tensor]] = []

    @torch.no_grad()
    def update(
        self,
        features: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
    ) -> None:
        """Adds one batch.

        Args:
            features: (N, C, H, W) per level.
            image_sizes: (height, width) of each image in pixels, before padding.
            batch_size: (height, width) of the padded batch in pixels.
        """
        batch = [_moments(level, image_sizes, batch_size) for level in features]
        self._levels = (
            [_merged(*both) for both in zip(self._levels, batch, strict=True)]
            if self._levels
            else batch
        )

    def result(self) -> list[float]:
        """Returns the population standard deviation per level, in the order of the features."""
        if not self._levels:
            raise ValueError("LevelStd.result needs at least one update")
        return [float((squares / count).sqrt()) for count, _, squares in self._levels]


def _moments(
    features: Tensor, image_sizes: Sequence[tuple[int, int]], batch_size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns number of valid values, their mean, and the sum of squared deviations."""
    # two passes, mean then deviations; `is_padded` is known on the host and saves the masking
    values = features.double()
    grid = (values.shape[-2], values.shape[-1])
    outside = ~valid_cells(image_sizes, batch_size, grid, device=values.device)[:, None]
    count = (~outside).sum(dtype=values.dtype) * values.shape[1]
    padded = is_padded(image_sizes, batch_size)
    mean = (values.masked_fill(outside, 0) if padded else values).sum() / count
    deviations = values - mean
    return (
        count,
        mean,
        (deviations.masked_fill(outside, 0) if padded else deviations).square().sum(),
    )


def _merged(
    first: tuple[Tensor, Tensor, Tensor], second: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the moments of both sets of values together."""
    (count_a, mean_a, squares_a), (count_b, mean_b, squares_b) = first, second
    count, gap = count_a + count_b, mean_b - mean_a
    return (
        count,
        mean_a + gap * count_b / count,
        squares_a + squares_b + gap**2 * count_a * count_b / count,
    )
