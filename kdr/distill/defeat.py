"""DeFeat: foreground and background of the neck's features are distilled separately."""

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
    r"""Returns half the mean squared difference over each region of the whole batch: (J,).

        L_j = sum_n sum_{hw} M_j sum_c (S - T)^2 / max(1, 2 C sum_n sum_{hw} M_j)

    Guo et al., "Distilling Object Detectors via Decoupled Features", CVPR 2021, as in its code
    (docs/method.md, A.2).

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        regions: (J, N, H, W) of 0 and 1.
    """
    errors = squared_errors(student, teacher)
    regions = regions.to(errors.dtype)
    # `errors` is a mean over channels, so C cancels; the clamp matters only for an empty region
    return (regions * errors).sum((1, 2, 3)) / (2 * regions.sum((1, 2, 3))).clamp(min=1)


class Defeat(Method):
    """DeFeat's neck loss: L = 1/L sum_l ( w_fg L_fg + w_bg L_bg ), L_j from `decoupled_distances`.

    Adapters are 3x3 convolutions. Each box is foreground on the one level of its size
    (`boxes_of_level`) and background on all others. Different from the original: a box covers every
    cell it touches (`foreground_mask`); the original truncates edges to whole cells, and a long
    thin box keeps a single cell. The original's head loss is not implemented.

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
        # as if every image filled its batch: padding counts, as in the original
        valid = ValidCells([batch_size] * len(boxes), batch_size, stacked.device)
        num_levels = len(self.aligned.levels)
        distances = []
        for level, (_, features, target) in enumerate(self.aligned(student, teacher)):
            # counted from the finest level that learns, as in the original, not by stride
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
        """Returns half of each region's weight, divided by the number of levels."""
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
    # `tiny` starts the loss near the teacher's energy and passes almost no gradient on, so
    # `calibrate` would measure the adapters and not the method (docs/evidence.md)
    aligned = AlignedLevels("defeat", levels, seed=setup.seed, kind="conv3x3", init="tiny")
    return Defeat(
        aligned,
        foreground_weight=settings.foreground_weight,
        background_weight=settings.background_weight,
    )
