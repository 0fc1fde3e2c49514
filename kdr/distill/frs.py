"""FRS: features and class scores, weighted by the teacher's confidence in each cell."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.config.baselines import FrsConfig
from kdr.distill.alignment import AlignedLevels
from kdr.distill.cells import ToTeachersGrid
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.errors import ShapeMismatchError


@torch.no_grad()
def feature_richness(teacher_logits: Tensor) -> Tensor:
    """Returns the probability of the most probable class of any of the teacher's boxes in a cell.

    Du et al., "Distilling Object Detectors with Feature Richness", NeurIPS 2021.

    Args:
        teacher_logits: (N, A, K, H, W) class logits.

    Returns:
        (N, H, W), in [0, 1].
    """
    # the sigmoid is monotonic: taken after the maximum, it is computed once per cell
    return teacher_logits.flatten(1, 2).amax(1).sigmoid()


def richness_mean(of_cells: Tensor, richness: Tensor) -> Tensor:
    """Returns the mean over all cells of a batch, weighted by richness.

    Args:
        of_cells: (N, H, W) values to average.
        richness: (N, H, W) non-negative weights.

    Returns:
        Scalar; 0 if every weight is 0.
    """
    weights = richness.to(of_cells.dtype)
    return (weights * of_cells).sum() / weights.sum().clamp(min=torch.finfo(of_cells.dtype).tiny)


def score_errors(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Returns the cross entropy of class probabilities, summed over boxes and classes: (N, H, W).

    Args:
        student_logits: (N, A, K, H, W) class logits.
        teacher_logits: (N, A, K, H, W); no gradient flows into them.

    Raises:
        ShapeMismatchError: if they differ in shape.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ShapeMismatchError(
            "distill.frs: logits of student and teacher must agree in boxes per cell, classes and "
            f"cells, got {tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}. "
            "Use two detectors of the same kind"
        )
    # from logits and in fp32, so that extreme scores have finite losses
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(
            torch.promote_types(student_logits.dtype, teacher_logits.dtype), torch.float32
        )
        targets = teacher_logits.detach().to(dtype).sigmoid()
        return F.binary_cross_entropy_with_logits(
            student_logits.to(dtype), targets, reduction="none"
        ).sum((1, 2))


class Frs(Method):
    r"""Distils features and class scores where the teacher sees an object.

        L = sum_l [ w_f mean_q( ||a_l(S_l) - T_l||^2 )
                    + w_s mean_q( sum_{a,k} BCE(sigma(s_l), sigma(t_l)) ) ]
        q = max_{a,k} sigma(t_l)
        mean_q(x) = sum q x / sum q over the cells of the batch

    with 3x3 adapters a_l, class logits s_l and t_l, and the sum of squares taken over channels. No
    ground truth is used. Padded cells count with the teacher's confidence in them.

    Source: Du et al., "Distilling Object Detectors with Feature Richness", NeurIPS 2021
    (docs/method.md, A.7).

    Args:
        aligned: the levels, adapted.
        feature_weight: w_f.
        score_weight: w_s.
    """

    counts_padding = True

    def __init__(
        self, aligned: AlignedLevels, *, feature_weight: float, score_weight: float
    ) -> None:
        super().__init__()
        self.aligned = aligned
        self.feature_weight, self.score_weight = feature_weight, score_weight
        self._to_teachers_grid = ToTeachersGrid("frs scores")

    def forward(self, student: Outputs, teacher: Outputs, **_: Any) -> list[Term]:
        """Returns the terms `frs.feature` and `frs.score`. See `Method`."""
        # both follow from FrsConfig.needs()
        assert student.class_logits is not None
        assert teacher.class_logits is not None
        levels = self.aligned.levels
        of_levels = zip(
            self.aligned(student, teacher),
            levels.of_student(student.class_logits),
            levels.of_teacher(teacher.class_logits),
            strict=True,
        )
        features, scores = [], []
        for (name, aligned, target), logits, target_logits in of_levels:
            richness = feature_richness(target_logits)
            # `squared_errors` is a mean over channels, the paper's a sum
            features.append(
                target.shape[1] * richness_mean(squared_errors(aligned, target), richness)
            )
            scores.append(
                richness_mean(
                    score_errors(self._resized(logits, target, name), target_logits), richness
                )
            )
        return [
            Term("frs.feature", torch.stack(features).sum(), self.feature_weight),
            Term("frs.score", torch.stack(scores).sum(), self.score_weight),
        ]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Returns the weight times the channels it sums over, for features; scores have no unit."""
        levels = self.aligned.levels
        return {
            f"frs.feature.{name}": self.feature_weight * channels
            for name, channels in zip(levels.names, levels.teacher_channels, strict=True)
        }

    def _resized(self, logits: Tensor, target: Tensor, level: str) -> Tensor:
        """Returns the student's logits (N, A, K, H, W), resized to the teacher's cells."""
        if logits.shape[-2:] == target.shape[-2:]:
            return logits
        # interpolation takes a single axis of channels, so boxes and classes share it here
        resized = self._to_teachers_grid(logits.flatten(1, 2), target, level)
        return resized.view(*logits.shape[:3], *resized.shape[-2:])


def build_frs(settings: FrsConfig, setup: Setup) -> Frs:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "frs").only(settings.levels, "distill.frs.levels")
    aligned = AlignedLevels("frs", levels, seed=setup.seed, kind="conv3x3")
    return Frs(aligned, feature_weight=settings.feature_weight, score_weight=settings.score_weight)
