"""KDR: knowledge review, foreground/background decoupling and pyramid pooling."""

import itertools
import logging
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from kdr.config.distill import KdrConfig, Scale
from kdr.distill.cells import ToTeachersGrid, ValidCells
from kdr.distill.distance import ScalesBelow, masked_pyramid_distances
from kdr.distill.levels import MatchedLevels, matched_levels, unique_level_names
from kdr.distill.masks import MaskValues, background_mask, foreground_mask, padded_boxes
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.distill.review import ReviewChain
from kdr.errors import ConfigError
from kdr.randomness import address

_log = logging.getLogger(__name__)


class Kdr(Method):
    r"""Distils reviewed student features, foreground and background separately, at several scales.

        L = sum_l [ b D_l(M_fg) + (1 - b) D_l(M_bg) ],   without masks   L = sum_l D_l(V)
        D_l(w) = sum_i omega_i d_{k_i}(w) / sum_i omega_i,   omega_i = (1/2)^i
        d_k(w) = sum_n v_n sum_bins pi_k (1/C) sum_c mu_k^2
        mu_k = A_k(w D) / A_k(w),   D = (G_l - T_l) / sigma_l

    with G_l the reviewed student features of level l (`ReviewChain`), T_l the teacher's, sigma_l
    the teacher's standard deviation (one for all levels, or the level's own, or 1), A_k adaptive
    average pooling to k x k, pi_k a bin's share of the mass A_k(w), v_n = 1/N for images with any
    mass, M_fg and M_bg the region weights (`kdr.distill.masks`), V the cells that see the image and
    b the share of the foreground. docs/method.md, F, has every symbol; docs/method.md, F.8, lists
    the details that the paper's abstract leaves open.

    Source: Zhang Yao, Pan Zhisong, "Object detection distillation based on knowledge review and
    feature decoupling", Application Research of Computers 2023(5): 1542-1547.

    Args:
        review: the review chain over the matched levels.
        levels: the matched levels.
        foreground_share: b.
        masks: `boxes`, or `none` to compare whole images without decoupling.
        mask_values: weight of a foreground cell, `area` or `binary`.
        scales: pooling scales.
        scales_below: which scales fit, see `masked_pyramid_distance`.
        teacher_std: sigma_l per matched level; None for 1.
        padding: whether cells that see nothing but padding are `ignored` or `counted`.
    """

    def __init__(
        self,
        review: ReviewChain,
        levels: MatchedLevels,
        *,
        foreground_share: float,
        masks: Literal["boxes", "none"],
        mask_values: MaskValues,
        scales: Sequence[Scale],
        scales_below: ScalesBelow,
        teacher_std: Sequence[float] | None,
        padding: Literal["ignored", "counted"],
    ) -> None:
        super().__init__()
        self.review = review
        self.levels = levels
        self.foreground_share = foreground_share
        self.masks, self.mask_values = masks, mask_values
        self.scales, self.scales_below = tuple(scales), scales_below
        self.teacher_std = tuple(teacher_std) if teacher_std is not None else (1.0,) * len(levels)
        self.counts_padding = padding == "counted"
        self._to_teachers_grid = ToTeachersGrid("kdr")

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        **_: Any,
    ) -> list[Term]:
        """Returns the terms `kdr.foreground` and `kdr.background`, or `kdr.feature` without masks.

        See `Method`.
        """
        distances = self.level_distances(
            student.features,
            teacher.features,
            boxes=boxes,
            image_sizes=image_sizes,
            batch_size=batch_size,
        )
        return [
            Term(name, value, share)
            for (name, share), value in zip(self._shares().items(), distances.sum(1), strict=True)
        ]

    def level_distances(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
    ) -> Tensor:
        """Returns D_l of each region at each matched level.

        Shape (2, L), foreground and background; (1, L) without masks.
        """
        matched = self.levels.of_student(student)
        valid = ValidCells(
            image_sizes, batch_size, matched[0].device, count_padding=self.counts_padding
        )
        # padding by the student's cells here, by the teacher's in the distance below
        reviewed = self.review(matched, [valid.padding_like(features) for features in matched])
        # stacked once per step for all levels
        stacked = padded_boxes(boxes) if self.masks == "boxes" else None
        distances = []
        for name, features, target, std in zip(
            self.levels.names,
            reviewed,
            self.levels.of_teacher(teacher),
            self.teacher_std,
            strict=True,
        ):
            # in 16 bits, weights of 1 / (cells of the box) would not sum to 1
            dtype = torch.promote_types(features.dtype, torch.float32)
            distance = masked_pyramid_distances(
                self._to_teachers_grid(features, target, name),
                target,
                self._region_weights(stacked, valid.like(target), batch_size, dtype),
                scales=self.scales,
                scales_below=self.scales_below,
            )
            # D is homogeneous of degree two: dividing the result saves a copy of both features
            distances.append(distance / std**2)
        return torch.stack(distances, 1)

    def logged_numbers(self) -> dict[str, Tensor]:
        """Returns the scale of each link, such as `zeta.P5->P4`; {} under gated fusion."""
        return {f"zeta.{name}": zeta.detach() for name, zeta in self.review.zetas().items()}

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Returns a region's share over the variance of its level, pooling scales aside."""
        return {
            f"{term}.{name}": share / std**2
            for term, share in self._shares().items()
            for name, std in zip(self.levels.names, self.teacher_std, strict=True)
        }

    def _shares(self) -> dict[str, float]:
        """Returns the names of the terms and their shares of the method's weight."""
        if self.masks == "none":
            return {"kdr.feature": 1.0}
        return {
            "kdr.foreground": self.foreground_share,
            "kdr.background": 1 - self.foreground_share,
        }

    def _region_weights(
        self,
        boxes_xyxy: Tensor | None,
        valid: Tensor,
        batch_size: tuple[int, int],
        dtype: torch.dtype,
    ) -> Tensor:
        """Returns the weights of the regions: (2, N, H, W), or (1, N, H, W) without masks."""
        if boxes_xyxy is None:
            return valid.to(dtype)[None]
        foreground = foreground_mask(
            boxes_xyxy, valid, batch_size, values=self.mask_values, dtype=dtype
        )
        return torch.stack([foreground, background_mask(foreground, valid)])


def build_kdr(settings: KdrConfig, setup: Setup) -> Kdr:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches, a link is unknown, identity adapters do not fit, or a
            deviation is not positive.
    """
    levels = matched_levels(setup, "kdr")
    # links are checked against all of the student's levels, so that a typo is an error while a link
    # to an unmatched level is only dropped
    review = ReviewChain(
        levels.names,
        levels.student_channels,
        levels.teacher_channels,
        links=_usable_links(
            settings.review_links, unique_level_names(setup.student.strides), levels.names
        ),
        seed=address(setup.seed, "kdr"),
        attention=settings.attention,
        fusion=settings.fusion,
        gates=settings.gates,
        align=settings.align,
        project=settings.project,
        norm=settings.adapter_norm,
        init=settings.init,
        upsample=settings.upsample,
    )
    return Kdr(
        review,
        levels,
        foreground_share=settings.foreground_share,
        masks=settings.masks,
        mask_values=settings.mask_values,
        scales=settings.pyramid_scales,
        scales_below=settings.scales_below,
        teacher_std=_divisors(settings.normalisation, levels, setup),
        padding=settings.padding,
    )


def _divisors(
    normalisation: Literal["teacher_std", "level_std", "none"], levels: MatchedLevels, setup: Setup
) -> tuple[float, ...] | None:
    """Returns sigma_l of each matched level; None for 1."""
    if normalisation == "none":
        return None
    stds = levels.teacher_std(setup, "distill.kdr.normalisation")
    # One number for all levels: with each level's own, the coarsest had 69 % of the gradient's
    # squared norm and the finest 0.1 %, and AP was lower (docs/evidence.md).
    return (
        stds
        if normalisation == "level_std"
        else (math.sqrt(fmean(std**2 for std in stds)),) * len(stds)
    )


def _usable_links(
    links: Literal["all"] | Sequence[str], all_names: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Returns the links between neighbouring matched levels; drops links of unmatched levels."""
    known, usable = _links_between(all_names), _links_between(names)
    if links == "all":
        return usable
    unknown = [link for link in links if link not in known]
    if unknown:
        raise ConfigError(
            f"distill.kdr.review_links: each must be one of {', '.join(known) or 'none'}, got "
            f"{', '.join(unknown)}. A link joins two neighbouring student levels"
        )
    dropped = [link for link in links if link not in usable]
    if dropped:
        _log.warning(
            "kdr: review links %s are dropped: the teacher lacks one of their levels",
            ", ".join(dropped),
        )
    return [link for link in usable if link in links]  # finest first, however they were written


def _links_between(names: Sequence[str]) -> list[str]:
    return [f"{coarse}->{fine}" for fine, coarse in itertools.pairwise(names)]
