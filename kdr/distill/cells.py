"""The cells of feature maps: how many there are, which of them see an image, and one map brought to
the cells of another.
"""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.distill.masks import is_padded, valid_cells

_log = logging.getLogger(__name__)


def grid_of(features: Tensor) -> tuple[int, int]:
    """(H, W) of a feature map."""
    return features.shape[-2], features.shape[-1]


class ValidCells:
    """Which cells of feature maps touch the unpadded images of a batch: V in docs/method.md, F.1,
    once for each size of map.

    Args:
        image_sizes: (height, width) of each image in pixels, before padding.
        batch_size: (height, width) of the padded batch in pixels.
        device: of the feature maps.
        count_padding: take every image to fill its batch: V = 1.
    """

    def __init__(
        self,
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        device: torch.device,
        *,
        count_padding: bool = False,
    ) -> None:
        self._image_sizes = [batch_size] * len(image_sizes) if count_padding else image_sizes
        self._batch_size, self._device = batch_size, device
        self._is_padded = is_padded(self._image_sizes, batch_size)
        self._of_grids: dict[tuple[int, int], Tensor] = {}

    def like(self, features: Tensor) -> Tensor:
        """(N, H, W) bool, for a feature map (N, C, H, W)."""
        grid = grid_of(features)
        if grid not in self._of_grids:
            self._of_grids[grid] = valid_cells(
                self._image_sizes, self._batch_size, grid, device=self._device
            )
        return self._of_grids[grid]

    def padding_like(self, features: Tensor) -> Tensor | None:
        """The other cells, (N, 1, H, W) bool, for a feature map (N, C, H, W); None where there are
        none.
        """
        return ~self.like(features)[:, None] if self._is_padded else None


class ToTeachersGrid:
    """Resizes features of the student to the cells of the teacher's (bilinear), and says so once
    per level.

    Args:
        method: name of the method that asks.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._told: set[str] = set()

    def __call__(self, features: Tensor, teacher: Tensor, level: str) -> Tensor:
        """(N, C, H, W) of the student with H and W of the teacher's; `level` is its name for the
        log.
        """
        grid = grid_of(teacher)
        if grid_of(features) == grid:
            return features
        if level not in self._told:
            self._told.add(level)
            _log.info(
                "%s: %s of the student, %s cells, is resized to the teacher's %s",
                self._method,
                level,
                grid_of(features),
                grid,
            )
        return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
