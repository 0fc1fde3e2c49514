"""FitNet: the mean squared error of adapted features."""

from collections.abc import Sequence
from typing import Any

import torch

from kdr.config.baselines import FitnetConfig
from kdr.distill.alignment import AlignedLevels
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.method import Method, Outputs, Setup, Term


class Fitnet(Method):
    """L = sum_l mean( (a_l(S_l) - T_l)^2 ), the mean over images, channels and cells.

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, with adapters a_l on every level
    of the neck, as in the baselines of later papers (docs/method.md, A.8). Padding counts, as in
    those papers.

    Args:
        aligned: the levels, adapted.
    """

    counts_padding = True

    def __init__(self, aligned: AlignedLevels) -> None:
        super().__init__()
        self.aligned = aligned

    def forward(self, student: Outputs, teacher: Outputs, **_: Any) -> list[Term]:
        """Returns the term `fitnet.feature`. See `Method`."""
        errors = [
            squared_errors(features, target).mean()
            for _, features, target in self.aligned(student, teacher)
        ]
        return [Term("fitnet.feature", torch.stack(errors).sum())]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Returns 1 for every level: the method itself is the unit."""
        return {f"fitnet.feature.{name}": 1.0 for name in self.aligned.levels.names}


def build_fitnet(settings: FitnetConfig, setup: Setup) -> Fitnet:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches, or identity adapters do not fit.
    """
    levels = matched_levels(setup, "fitnet").only(settings.levels, "distill.fitnet.levels")
    return Fitnet(AlignedLevels("fitnet", levels, seed=setup.seed, kind=settings.align))
