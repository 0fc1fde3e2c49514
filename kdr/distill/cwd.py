"""CWD: each channel as a distribution over cells; the student's is matched to the teacher's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.config.baselines import CwdConfig
from kdr.distill.alignment import AlignedLevels
from kdr.distill.distance import refuse_unequal_shapes
from kdr.distill.levels import matched_levels
from kdr.distill.method import Method, Outputs, Setup, Term


def channel_divergence(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    r"""Returns the KL divergence of the channels' distributions over cells.

    Mean over images and channels (docs/method.md, A.6):

        L = tau^2 / (N C) sum_{n,c} KL( softmax_{hw}(T_{nc} / tau) || softmax_{hw}(S_{nc} / tau) )

    Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021. Adding a
    constant to a channel changes nothing.

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        temperature: tau.

    Returns:
        Scalar, in float32 or better.

    Raises:
        ShapeMismatchError: if the two feature maps differ in shape.
    """
    refuse_unequal_shapes(student, teacher)
    # a softmax over the 16,800 cells of P3 at 800 x 1344 px is too coarse in 16 bits
    with torch.autocast(student.device.type, enabled=False):
        dtype = torch.promote_types(
            torch.promote_types(student.dtype, teacher.dtype), torch.float32
        )
        of_student, of_teacher = (
            (features.to(dtype).flatten(2) / temperature).log_softmax(-1)
            for features in (student, teacher.detach())
        )
        # summed here and divided below, since "batchmean" divides by images and not by channels
        divergence = F.kl_div(of_student, of_teacher, reduction="sum", log_target=True)
        return divergence * temperature**2 / (student.shape[0] * student.shape[1])


class Cwd(Method):
    """L = sum_l `channel_divergence`(a_l(S_l), T_l), with 1x1 adapters a_l where channels differ.

    The softmax includes padded cells, as in the original.

    Args:
        aligned: the levels, adapted.
        temperature: tau.
    """

    counts_padding = True

    def __init__(self, aligned: AlignedLevels, *, temperature: float) -> None:
        super().__init__()
        self.aligned, self.temperature = aligned, temperature

    def forward(self, student: Outputs, teacher: Outputs, **_: Any) -> list[Term]:
        """Returns the term `cwd.divergence`. See `Method`."""
        divergences = [
            channel_divergence(features, target, temperature=self.temperature)
            for _, features, target in self.aligned(student, teacher)
        ]
        return [Term("cwd.divergence", torch.stack(divergences).sum())]


def build_cwd(settings: CwdConfig, setup: Setup) -> Cwd:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "cwd").only(settings.levels, "distill.cwd.levels")
    # mmrazor has no adapters, so none where channels are equal
    aligned = AlignedLevels("cwd", levels, seed=setup.seed, where_channels_differ=True)
    return Cwd(aligned, temperature=settings.temperature)
