"""DeFeat: foreground and background of the neck's features are imitated apart."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdr.config.baselines import DefeatConfig
from kdr.distill.alignment import AlignedLevels
from kdr.distill.cells import ValidCells
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.masks import background_mask, boxes_of_level, foreground_mask, padded_boxes
from kdr.distill.method import Method, Outputs, Setup, Term


def decoupled_distances(student: Tensor, teacher: Tensor, regions: Tensor) -> Tensor:
    r"""Half the mean squared difference over each region of the whole batch: (J,).

        L_j = sum_n sum_{hw} M_j sum_c (S - T)^2 / max(1, 2 C sum_n sum_{hw} M_j)

    Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021, as in its code.

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        regions: (J, N, H, W) of 0 and 1.
    """
    errors = squared_errors(student, teacher)
    regions = regions.to(errors.dtype)
    return (regions * errors).sum((1, 2, 3)) / (2 * regions.sum((1, 2, 3))).clamp(min=1)


class Defeat(Method):
    """DeFeat's loss of the neck: L = 1/L sum_l ( w_fg L_fg + w_bg L_bg ), with L_j of
    `decoupled_distances`, 3x3 adapters.

    Each box is foreground on the one level of its size (`boxes_of_level`), background everywhere
    else. What differs from the original: a box covers every cell that it touches
    (`foreground_mask`), where the original cuts its edges to whole cells and leaves a single cell
    of a box that is long but thin. The loss of the original's head is not here.

    Args:
        aligned: the levels, adapted.
        foreground_weight: w_fg.
        background_weight: w_bg.
    """

    counts_padding = True

    def __init__(
        self, aligned: AlignedLevels, *, foreground_weight: float, background_weight: float
    ) -> None:
        super().__init__()
        self.aligned = aligned
        self.weights = {
            "defeat.foreground": foreground_weight,
            "defeat.background": background_weight,
        }

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        boxes: Sequence[Tensor],
        batch_size: tuple[int, int],
        **_: Any,
    ) -> list[Term]:
        """Returns the terms `defeat.foreground` and `defeat.background`. See `Method`."""
        stacked = padded_boxes(boxes)
        valid = ValidCells([batch_size] * len(boxes), batch_size, stacked.device)
        num_levels = len(self.aligned.levels)
        distances = []
        for level, (_, features, target) in enumerate(self.aligned(student, teacher)):
            its_boxes = boxes_of_level(stacked, level, num_levels)
            foreground = foreground_mask(its_boxes, valid.like(target), batch_size, values="binary")
            regions = torch.stack([foreground, background_mask(foreground, valid.like(target))])
            distances.append(decoupled_distances(features, target, regions))
        means = torch.stack(distances).mean(0)
        return [
            Term(name, value, weight)
            for (name, weight), value in zip(self.weights.items(), means, strict=True)
        ]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Half a region's weight over the number of levels."""
        names = self.aligned.levels.names
        return {
            f"{term}.{name}": weight / 2 / len(names)
            for term, weight in self.weights.items()
            for name in names
        }


def build_defeat(settings: DefeatConfig, setup: Setup) -> Defeat:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "defeat").only(settings.levels, "distill.defeat.levels")
    aligned = AlignedLevels("defeat", levels, seed=setup.seed, kind="conv3x3", init="tiny")
    return Defeat(
        aligned,
        foreground_weight=settings.foreground_weight,
        background_weight=settings.background_weight,
    )
