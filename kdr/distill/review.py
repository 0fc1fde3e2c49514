"""Knowledge review: fuses the student's coarse levels into its finer ones, with attention.

Equations: docs/method.md, F.2. Used in training only; the detector's head reads its own features.
"""

import itertools
import math
from collections.abc import Collection, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.distill.adapters import (
    Adapter,
    AdapterInit,
    AdapterKind,
    AdapterNorm,
    default_conv,
    refuse_identity,
)
from kdr.randomness import address

Attention = Literal["none", "spatial", "channel", "both"]
Fusion = Literal["residual", "gated"]
Gates = Literal["softmax", "sigmoid"]
Upsample = Literal["nearest", "bilinear"]

_REDUCTION = 16


class ReviewChain(nn.Module):
    """Reviews a student's feature pyramid from coarse to fine.

        R_L = X_L,   R_l = fuse(X_l, Up(R_{l+1})) where linked, else X_l

    X_l = V a_l(S_l) with adapters a_l into M channels (the largest number that the teacher has at a
    level). The reviewed features are G_l = V o_l(R_l) with projections o_l into the teacher's
    channels. V is 1 where a cell sees the image. See `Link` for the fusion. R is passed down before
    the projection, as in ReviewKD (Chen et al., CVPR 2021).

    Each module draws its initial weights from its own generator, addressed by the seed and the
    module's name: adding or removing a link shifts no other draw.

    Args:
        level_names: L names such as P3, finest first.
        student_channels: C of the student, per level.
        teacher_channels: C of the teacher, per level.
        links: the active links, such as `P5->P4`; only between neighbours in `level_names`.
        seed: seed of the initial weights.
        attention: the inputs of the gates: `none`, `spatial`, `channel` or `both`.
        fusion: `residual` or `gated`.
        gates: `softmax` or `sigmoid`.
        align: kind of the adapters a_l.
        project: kind of the adapters o_l.
        norm: norm at the end of an adapter; identity adapters have none.
        init: `dirac` starts convolutions with equal channels in and out as the identity.
        upsample: interpolation of a coarse level to the size of the finer one.

    Raises:
        ConfigError: if an identity adapter would have to change the number of channels.
    """

    def __init__(
        self,
        level_names: Sequence[str],
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        *,
        links: Collection[str],
        seed: int,
        attention: Attention,
        fusion: Fusion,
        gates: Gates,
        align: AdapterKind,
        project: AdapterKind,
        norm: AdapterNorm,
        init: AdapterInit,
        upsample: Upsample,
    ) -> None:
        super().__init__()
        # the teacher's channels, not the student's, so that Dirac and identity projections exist
        width = max(teacher_channels)
        self.level_names = tuple(level_names)
        self.align, self.project, self.links = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for name, of_student, of_teacher in zip(
            level_names, student_channels, teacher_channels, strict=True
        ):
            refuse_identity("distill.kdr.align", align, name, of_student, width)
            refuse_identity("distill.kdr.project", project, name, width, of_teacher)
            self.align[name] = Adapter(
                of_student,
                width,
                kind=align,
                norm=norm,
                init=init,
                seed=address(seed, "align", name),
            )
            self.project[name] = Adapter(
                width,
                of_teacher,
                kind=project,
                norm=norm,
                init=init,
                seed=address(seed, "project", name),
            )
        for fine, coarse in itertools.pairwise(level_names):
            link = f"{coarse}->{fine}"
            if link in links:
                self.links[link] = Link(
                    width,
                    attention=attention,
                    fusion=fusion,
                    gates=gates,
                    upsample=upsample,
                    seed=address(seed, "link", link),
                )

    def forward(self, student: Sequence[Tensor], padding: Sequence[Tensor | None]) -> list[Tensor]:
        """Returns the reviewed features.

        Args:
            student: (N, C, H, W) per level, finest first.
            padding: (N, 1, H, W) bool per level, True in cells that do not count; None if all
                count.

        Returns:
            (N, C of the teacher, H, W) per level.
        """
        # Padding is set to 0 after each step: a bias would fill it, and the 3x3 projection would
        # carry it into the image.
        aligned = [
            _filled(self.align[name](x), p)
            for name, x, p in zip(self.level_names, student, padding, strict=True)
        ]
        reviewed = aligned[-1:]  # grows at the front: reviewed[0] is the next coarser level
        for level in reversed(range(len(aligned) - 1)):
            link = f"{self.level_names[level + 1]}->{self.level_names[level]}"
            x = aligned[level]
            reviewed.insert(
                0, self.links[link](x, reviewed[0], padding[level]) if link in self.links else x
            )
        return [
            _filled(self.project[name](r), p)
            for name, r, p in zip(self.level_names, reviewed, padding, strict=True)
        ]

    def zetas(self) -> dict[str, nn.Parameter]:
        """Returns the scale of each link under residual fusion; {} under gated fusion."""
        scales = {name: link.zeta for name, link in self.links.items()}
        return {name: zeta for name, zeta in scales.items() if isinstance(zeta, nn.Parameter)}


class Link(nn.Module):
    """Passes the reviewed coarse level u down to the next finer level x.

    With u resized to x, spatial logits p = conv1x1([x; u]) (N, 2, H, W) and channel logits
    q = W2 ReLU(W1 GAP([x; u])) (N, 2, M), reduction 16, GAP over the cells that count:

    - `softmax` gates: (g^x, g^u) = softmax over the two branches of p + q (`both`), p (`spatial`),
      q (`channel`) or 0 (`none`). These gates are convex, so the kinds of attention differ in
      attention, not in scale.
    - `sigmoid` gates: sigmoid of p, of q, their product, or 1/2. ReviewKD uses p alone.
    - `gated` fusion: g^x x + g^u u. `residual` fusion: x + zeta g^u u with a scalar zeta that
      starts at 0.

    Args:
        channels: M.
        attention: `none`, `spatial`, `channel` or `both`.
        fusion: `residual` or `gated`.
        gates: `softmax` or `sigmoid`.
        upsample: `nearest` or `bilinear`.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        channels: int,
        *,
        attention: Attention,
        fusion: Fusion,
        gates: Gates,
        upsample: Upsample,
        seed: int,
    ) -> None:
        super().__init__()
        self.gates, self.upsample = gates, upsample
        # a submodule exists only if its logits are used, so that DDP finds no unused parameter
        hidden = max(1, 2 * channels // _REDUCTION)
        spatial, channel = attention in ("spatial", "both"), attention in ("channel", "both")
        self.spatial = (
            default_conv(2 * channels, 2, seed=address(seed, "spatial")) if spatial else None
        )
        self.squeeze = (
            default_conv(2 * channels, hidden, seed=address(seed, "squeeze")) if channel else None
        )
        self.excite = (
            default_conv(hidden, 2 * channels, seed=address(seed, "excite")) if channel else None
        )
        # 0-dimensional, so that weight decay skips it: decay would pull every link towards off
        self.zeta = nn.Parameter(torch.zeros(())) if fusion == "residual" else None

    def forward(self, x: Tensor, coarse: Tensor, padding: Tensor | None) -> Tensor:
        """Returns the fused level (N, M, H, W) of the fine level x and a coarse one of any size."""
        u = _filled(_resized(coarse, x, self.upsample), padding)
        logits = [*self._spatial_logits(x, u), *self._channel_logits(x, u, padding)]
        gate_u = self._gate(logits, 1)
        if self.zeta is not None:
            return x + self.zeta * gate_u * u
        # residual fusion never reads gate_x, so it is computed only here
        gate_x = 1 - gate_u if self.gates == "softmax" else self._gate(logits, 0)
        return gate_x * x + gate_u * u

    def _gate(
        self, logits: Sequence[tuple[Tensor, Tensor]], branch: Literal[0, 1]
    ) -> Tensor | float:
        """Returns the gate of x (branch 0) or of u (branch 1)."""
        if not logits:
            return 0.5
        if self.gates == "softmax":  # over two branches it is the sigmoid of their difference
            first, *others = (both[branch] - both[1 - branch] for both in logits)
            return sum(others, first).sigmoid()
        return math.prod(
            (both[branch].sigmoid() for both in logits[1:]), start=logits[0][branch].sigmoid()
        )

    def _spatial_logits(self, x: Tensor, u: Tensor) -> list[tuple[Tensor, Tensor]]:
        if self.spatial is None:
            return []
        # the convolution of [x; u], without writing [x; u] to memory
        of_x, of_u = self.spatial.weight.chunk(2, 1)
        both = F.conv2d(x, of_x, self.spatial.bias) + F.conv2d(u, of_u)
        return [(both[:, :1], both[:, 1:])]

    def _channel_logits(
        self, x: Tensor, u: Tensor, padding: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        if self.squeeze is None or self.excite is None:
            return []
        means = torch.cat([_mean_over_cells(x, padding), _mean_over_cells(u, padding)], 1).to(
            x.dtype
        )
        of_x, of_u = self.excite(self.squeeze(means).relu()).chunk(2, 1)
        return [(of_x, of_u)]


def _mean_over_cells(x: Tensor, padding: Tensor | None) -> Tensor:
    """Returns the mean over cells that count: (N, C, 1, 1), in float32 or better.

    Features must be 0 in the other cells.
    """
    total = x.sum((2, 3), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    num_cells = x.shape[2] * x.shape[3] if padding is None else (~padding).sum((2, 3), keepdim=True)
    return total / num_cells


def _filled(x: Tensor, padding: Tensor | None) -> Tensor:
    return x if padding is None else x.masked_fill(padding, 0)


def _resized(x: Tensor, like: Tensor, mode: Upsample) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(
        x, size=like.shape[-2:], mode=mode, align_corners=False if mode == "bilinear" else None
    )
