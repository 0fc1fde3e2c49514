"""Marks the cells of feature maps that see an image, and resizes one map to another's cells."""

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.distill.masks import is_padded, valid_cells

_log = logging.getLogger(__name__)


def grid_of(features: Tensor) -> tuple[int, int]:
    """Returns (H, W) of a feature map."""
    return features.shape[-2], features.shape[-1]


class ValidCells:
    """Marks the cells that touch the unpadded images of a batch: V in docs/method.md, F.1.

    Computed once per size of feature map.

    Args:
        image_sizes: (height, width) of each image in pixels, before padding.
        batch_size: (height, width) of the padded batch in pixels.
        device: device of the feature maps.
        count_padding: count padded cells too: V = 1 everywhere.
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
        # by size: student and teacher levels mostly have the same size, and so share a mask
        self._of_grids: dict[tuple[int, int], Tensor] = {}

    def like(self, features: Tensor) -> Tensor:
        """Returns (N, H, W) bool for a feature map (N, C, H, W)."""
        grid = grid_of(features)
        if grid not in self._of_grids:
            self._of_grids[grid] = valid_cells(
                self._image_sizes, self._batch_size, grid, device=self._device
            )
        return self._of_grids[grid]

    def padding_like(self, features: Tensor) -> Tensor | None:
        """Returns the padded cells, (N, 1, H, W) bool, for a feature map (N, C, H, W).

        None if no image is padded: callers can skip masking without reading the mask, which would
        wait for the GPU.
        """
        return ~self.like(features)[:, None] if self._is_padded else None


class ToTeachersGrid:
    """Resizes student features to the teacher's cells (bilinear), and logs it once per level.

    Args:
        method: name of the method, for the log.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._logged: set[str] = set()

    def __call__(self, features: Tensor, teacher: Tensor, level: str) -> Tensor:
        """Returns student features (N, C, H, W) with H and W of the teacher's.

        Args:
            features: (N, C, H, W) student features.
            teacher: (N, C, H, W) teacher features.
            level: name of the level, for the log.
        """
        grid = grid_of(teacher)
        if grid_of(features) == grid:
            return features
        # logged, because resizing blurs the student's features and no setting asks for it
        if level not in self._logged:
            self._logged.add(level)
            _log.info(
                "%s: student level %s of %s cells is resized to the teacher's %s",
                self._method,
                level,
                grid_of(features),
                grid,
            )
        return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
