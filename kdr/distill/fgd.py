"""FGD: focal distillation by region and attention, and global distillation of relations."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdr.config.baselines import FgdConfig
from kdr.distill.adapters import blank_conv, default_conv
from kdr.distill.alignment import AlignedLevels
from kdr.distill.cells import ValidCells
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.masks import background_mask, foreground_mask, padded_boxes
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.randomness import address


def spatial_attention(features: Tensor, *, temperature: float) -> Tensor:
    """Returns the attention to cells, H W softmax_{hw}( mean_c |F| / tau ).

    Its mean over the cells of an image is 1.

    Args:
        features: (N, C, H, W).
        temperature: tau; higher values give more even attention.

    Returns:
        (N, H, W) in float32 or better.
    """
    energy = _magnitude(features).mean(1)
    return _attention(energy.flatten(1), temperature).view_as(energy)


def channel_attention(features: Tensor, *, temperature: float) -> Tensor:
    """Returns the attention to channels, C softmax_c( mean_{hw} |F| / tau ): (N, C), mean 1."""
    return _attention(_magnitude(features).mean((2, 3)), temperature)


def focal_weights(foreground: Tensor, valid: Tensor) -> Tensor:
    """Returns FGD's region weights: 1 / (cells of the box) and 1 / (cells of the background).

    Foreground weights sum to the number of boxes (less where boxes overlap), background weights
    to 1.

    Args:
        foreground: (N, H, W), see `foreground_mask` with `area`.
        valid: (N, H, W) bool, cells that count.

    Returns:
        (2, N, H, W).
    """
    background = background_mask(foreground, valid)
    # the clamp: an image full of boxes has no background cell
    return torch.stack([foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)])


def focal_distances(
    student: Tensor, teacher: Tensor, weights: Tensor, *, temperature: float
) -> Tensor:
    r"""Returns sums of squared differences per region under the teacher's attention.

    Mean over images:

        L_j = 1/N sum_n sum_{hw} w_j G^S(T)_{hw} sum_c G^C(T)_c (S - T)^2

    The focal loss of Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR
    2022, without alpha and beta (docs/method.md, A.3).

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        weights: (J, N, H, W) region weights, see `focal_weights`.
        temperature: tau.

    Returns:
        (J,), in units of squared feature, summed over cells and channels.
    """
    teacher = teacher.detach()
    # the teacher's attention alone, as the author says is intended (yzd-v/FGD#12)
    of_channels = channel_attention(teacher, temperature=temperature)
    errors = squared_errors(student, teacher, channel_weights=of_channels) * student.shape[1]
    errors = errors * spatial_attention(teacher, temperature=temperature)
    return (weights.to(errors.dtype) * errors).sum((1, 2, 3)) / len(student)


def attention_distance(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Returns FGD's attention loss without gamma.

    The sum of absolute differences of both attentions, mean over images.
    """
    both = [
        (
            attention(student, temperature=temperature)
            - attention(teacher.detach(), temperature=temperature)
        )
        .abs()
        .sum()
        for attention in (spatial_attention, channel_attention)
    ]
    return (both[0] + both[1]) / len(student)


def relation_distance(
    student: Tensor, teacher: Tensor, of_student: Tensor, of_teacher: Tensor
) -> Tensor:
    """Returns FGD's global loss without lambda.

    The sum of squared differences of features plus their contexts, mean over images.

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        of_student: (N, C, 1, 1) context of the student's features, see `Context`.
        of_teacher: (N, C, 1, 1) context of the teacher's features; gradients do flow into it, since
            its module is trained.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    # both contexts on the student's side, because `squared_errors` detaches the teacher's side
    shifted = student.to(dtype) + (of_student.to(dtype) - of_teacher.to(dtype))
    return squared_errors(shifted, teacher).sum() * student.shape[1] / len(student)


class Context(nn.Module):
    """The global context that GcBlock adds to every cell, 0 at the start.

        W2 ReLU(LN(W1 sum_j softmax_j(W_k F_j) F_j))

    Cao et al., "GCNet: Non-local Networks Meet Squeeze-Excitation Networks and Beyond", ICCVW 2019,
    ratio 1/2.

    Args:
        channels: C.
        seed: seed of the initial weights.
    """

    def __init__(self, channels: int, *, seed: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        # no bias: a softmax is invariant to a constant
        self.attend = blank_conv(channels, 1, 1, bias=False)
        nn.init.kaiming_normal_(
            self.attend.weight, generator=torch.Generator().manual_seed(address(seed, "attend"))
        )
        self.squeeze = default_conv(channels, hidden, seed=address(seed, "squeeze"))
        self.norm = nn.GroupNorm(1, hidden)  # over all channels of the one cell: a layer norm
        self.expand = blank_conv(hidden, channels, 1, bias=True)
        nn.init.zeros_(self.expand.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Returns (N, C, 1, 1) for (N, C, H, W)."""
        attention = self.attend(features).flatten(2).softmax(-1)  # (N, 1, H W)
        context = (features.flatten(2) @ attention.mT.to(features.dtype))[..., None]
        expanded: Tensor = self.expand(self.norm(self.squeeze(context)).relu())
        return expanded


class Fgd(Method):
    """FGD: L = sum_l ( alpha L_fg + beta L_bg + gamma L_attention + lambda L_relation ).

    L_fg and L_bg are `focal_distances` under `focal_weights`, with every box on every level.
    Adapters are 1x1 where channels differ. The teacher's `Context` is trained like the student's,
    so the target of the relation moves, as in the original.

    Different from the original: boxes are measured against the padded batch. The original divides
    by the unpadded image, which stretches its masks in batches of unequal images. A box covers the
    cells it touches; the original adds a column to the right and a row below. As in the paper,
    foreground weights sum to the number of boxes and background weights to 1.

    Args:
        aligned: the levels, adapted.
        foreground_weight: alpha.
        background_weight: beta.
        attention_weight: gamma.
        relation_weight: lambda.
        temperature: tau of the attentions.
        seed: the trial's seed.
    """

    counts_padding = True

    def __init__(
        self,
        aligned: AlignedLevels,
        *,
        foreground_weight: float,
        background_weight: float,
        attention_weight: float,
        relation_weight: float,
        temperature: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.aligned, self.temperature = aligned, temperature
        # in the order in which `forward` stacks the terms of a level
        self.weights = {
            "fgd.foreground": foreground_weight,
            "fgd.background": background_weight,
            "fgd.attention": attention_weight,
            "fgd.relation": relation_weight,
        }
        # each role and level has its own draw
        self.of_student, self.of_teacher = (
            nn.ModuleDict(
                {
                    name: Context(channels, seed=address(seed, "fgd", "context", role, name))
                    for name, channels in zip(
                        aligned.levels.names, aligned.levels.teacher_channels, strict=True
                    )
                }
            )
            for role in ("student", "teacher")
        )

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        boxes: Sequence[Tensor],
        batch_size: tuple[int, int],
        **_: Any,
    ) -> list[Term]:
        """Returns the terms `fgd.foreground`, `.background`, `.attention` and `.relation`.

        See `Method`.
        """
        stacked = padded_boxes(boxes)
        # as if every image filled its batch: padding counts, as in the original
        valid = ValidCells([batch_size] * len(boxes), batch_size, stacked.device)
        tau = self.temperature
        levels = []  # (4,) per level, in the order of `self.weights`
        for name, features, target in self.aligned(student, teacher):
            foreground = foreground_mask(stacked, valid.like(target), batch_size, values="area")
            focal = focal_distances(
                features, target, focal_weights(foreground, valid.like(target)), temperature=tau
            )
            attention = attention_distance(features, target, temperature=tau)
            contexts = self.of_student[name](features), self.of_teacher[name](target)
            levels.append(
                torch.stack([*focal, attention, relation_distance(features, target, *contexts)])
            )
        values = torch.stack(levels).sum(0)
        return [
            Term(name, value, weight)
            for (name, weight), value in zip(self.weights.items(), values, strict=True)
        ]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:
        """Returns each sum's multiple of a mean: channels x boxes, x 1, x cells.

        The attention term compares no features and has no unit.
        """
        levels = self.aligned.levels
        return {
            f"{term}.{name}": self.weights[term] * channels * count
            for name, channels, (_, level) in zip(
                levels.names, levels.teacher_channels, levels.pairs, strict=True
            )
            for term, count in (
                ("fgd.foreground", boxes_per_image),
                ("fgd.background", 1.0),
                ("fgd.relation", math.prod(grids[level])),
            )
        }


def build_fgd(settings: FgdConfig, setup: Setup) -> Fgd:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "fgd").only(settings.levels, "distill.fgd.levels")
    return Fgd(
        AlignedLevels("fgd", levels, seed=setup.seed, where_channels_differ=True),
        foreground_weight=settings.foreground_weight,
        background_weight=settings.background_weight,
        attention_weight=settings.attention_weight,
        relation_weight=settings.relation_weight,
        temperature=settings.temperature,
        seed=setup.seed,
    )


def _magnitude(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32)).abs()


def _attention(energy: Tensor, temperature: float) -> Tensor:
    """Returns the softmax over the last axis times its length: (N, K) of mean 1."""
    return energy.shape[1] * torch.softmax(energy / temperature, 1)
