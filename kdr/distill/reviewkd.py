"""ReviewKD: fuses the student's levels from coarse to fine and compares them at several scales."""

from collections.abc import Sequence
from typing import Any

import torch

from kdr.config.method import MethodConfig
from kdr.distill.cells import ToTeachersGrid
from kdr.distill.distance import masked_pyramid_distance
from kdr.distill.levels import MatchedLevels, matched_levels
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.distill.review import ReviewChain
from kdr.randomness import address


class ReviewKd(Method):
    """L = sum_l HCL(G_l, T_l): reviewed features under the hierarchical context loss.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, as in its detection code
    (docs/method.md, A.1): adapters with batch norm, gates from a 1x1 convolution and a sigmoid
    (`ReviewChain`). HCL is `masked_pyramid_distance` with weight 1 everywhere at those of the
    scales full, 4, 2 and 1 that are below the height. Each process normalises by its own images.

    Args:
        review: the review chain over the levels.
        levels: the levels that learn.
    """

    counts_padding = True

    def __init__(self, review: ReviewChain, levels: MatchedLevels) -> None:
        super().__init__()
        self.review, self.levels = review, levels
        self._to_teachers_grid = ToTeachersGrid("reviewkd")

    def forward(self, student: Outputs, teacher: Outputs, **_: Any) -> list[Term]:
        """Returns the term `reviewkd.feature`. See `Method`."""
        matched = self.levels.of_student(student.features)
        reviewed = self.review(matched, [None] * len(matched))  # no mask: padding counts
        distances = []
        for name, features, target in zip(
            self.levels.names, reviewed, self.levels.of_teacher(teacher.features), strict=True
        ):
            ones = torch.ones_like(target[:, 0])
            aligned = self._to_teachers_grid(features, target, name)
            distances.append(
                masked_pyramid_distance(
                    aligned, target, ones, scales=("full", 4, 2, 1), scales_below="height"
                )
            )
        return [Term("reviewkd.feature", torch.stack(distances).sum())]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Returns 1 for every level, pooling scales aside."""
        return {f"reviewkd.feature.{name}": 1.0 for name in self.levels.names}


def build_reviewkd(_: MethodConfig, setup: Setup) -> ReviewKd:
    """Builds the method; it has no specific settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "reviewkd")
    # the review of `kdr: {preset: kdr-paper, attention: spatial}`; a test compares the two
    review = ReviewChain(
        levels.names,
        levels.student_channels,
        levels.teacher_channels,
        links=[
            f"{coarse}->{fine}"
            for fine, coarse in zip(levels.names, levels.names[1:], strict=False)
        ],
        seed=address(setup.seed, "reviewkd"),
        attention="spatial",
        fusion="gated",
        gates="sigmoid",
        align="conv1x1",
        project="conv3x3",
        norm="batch",
        init="kaiming",
        upsample="nearest",
    )
    return ReviewKd(review, levels)
