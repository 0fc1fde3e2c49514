"""PKD: features are compared by the Pearson correlation of each channel."""

from typing import Any

import torch
from torch import Tensor

from kdr.config.baselines import PkdConfig
from kdr.distill.alignment import AlignedLevels
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.method import Method, Outputs, Setup, Term

_EPSILON = 1e-6  # as in mmrazor


def pearson_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""Returns half the mean squared difference of standardised features.

    That is (n - 1)/n (1 - r), averaged over channels, with r the Pearson correlation of a student
    channel with the teacher's over the n = N H W cells of the batch. Cao et al., "PKD: General
    Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS 2022,
    with unbiased deviations plus 1e-6, as in mmrazor (docs/method.md, A.5).

    Args:
        student: (N, C, H, W) student features.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.

    Returns:
        Scalar in [0, 2]. A channel that is constant on both sides adds 0.
    """
    with torch.autocast(student.device.type, enabled=False):
        return squared_errors(standardised(student), standardised(teacher.detach())).mean() / 2


def standardised(features: Tensor) -> Tensor:
    """Returns features (N, C, H, W) with mean 0 and deviation 1 per channel of the batch.

    In float32 or better.
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    cells = features.numel() // features.shape[1]
    # one pass for both; a single cell has no unbiased deviation, but its deviation is 0 anyway
    std, mean = torch.std_mean(features, (0, 2, 3), correction=min(1, cells - 1), keepdim=True)
    return (features - mean) / (std + _EPSILON)


class Pkd(Method):
    """L = sum_l `pearson_distance`(S_l, T_l), without adapters.

    Student features are resized to the teacher's cells. Each process standardises over its own
    images, padding included, as in the original.

    Args:
        aligned: the levels, without adapters.
    """

    counts_padding = True

    def __init__(self, aligned: AlignedLevels) -> None:
        super().__init__()
        self.aligned = aligned

    def forward(self, student: Outputs, teacher: Outputs, **_: Any) -> list[Term]:
        """Returns the term `pkd.feature`. See `Method`."""
        distances = [
            pearson_distance(features, target)
            for _, features, target in self.aligned(student, teacher)
        ]
        return [Term("pkd.feature", torch.stack(distances).sum())]


def build_pkd(settings: PkdConfig, setup: Setup) -> Pkd:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches, or channels differ.
    """
    levels = matched_levels(setup, "pkd").only(settings.levels, "distill.pkd.levels")
    return Pkd(AlignedLevels("pkd", levels, seed=setup.seed, kind="identity"))
