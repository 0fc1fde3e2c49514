"""KDR: knowledge review, foreground/background decoupling and pyramid pooling."""

import itertools
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.config.distill import KdrConfig, Scale
from kdr.distill.distance import ScalesBelow, masked_pyramid_distances
from kdr.distill.levels import match_levels, unique_level_names
from kdr.distill.masks import MaskValues, background_mask, foreground_mask, is_padded, padded_boxes, valid_cells
from kdr.distill.method import FeatureLevels, Term
from kdr.distill.review import ReviewChain
from kdr.errors import ConfigError
from kdr.randomness import address

_log = logging.getLogger(__name__)


class Kdr(nn.Module):
    r"""Distils the reviewed student's features, foreground and background apart, at several scales.

        L = lambda(t) sum_l [ b D_l(M_fg) + (1 - b) D_l(M_bg) ],   without masks   L = lambda(t) sum_l D_l(V)
        D_l(w) = sum_i omega_i d_{k_i}(w) / sum_i omega_i,   omega_i = (1/2)^i
        d_k(w) = sum_n v_n sum_bins pi_k (1/C) sum_c mu_k^2,   mu_k = A_k(w D) / A_k(w),   D = (G_l - T_l) / sigma_l

    with G_l the reviewed student features of level l (`ReviewChain`), T_l the teacher's, sigma_l the teacher's standard
    deviation (or 1), A_k adaptive average pooling to k x k, pi_k a bin's share of the mass A_k(w), v_n = 1/N for images with
    any mass, M_fg and M_bg the region weights (`kdr.distill.masks`), V the cells that see the image, b the balance of
    foreground and lambda(t) = lambda clip(t / t_ramp, 0, 1). Section F of the method page fixes what the abstract leaves open.

    Source: Zhang Yao, Pan Zhisong, "Object detection distillation based on knowledge review and feature decoupling",
    Application Research of Computers 2023(5): 1542-1547.

    Args:
        review: the review chain over the matched levels.
        pairs: (student level, teacher level) for each level of the chain.
        weight: lambda.
        foreground_share: b.
        masks: `boxes`, or `none` for no decoupling.
        mask_values: weight of a foreground cell, `area` or `binary`.
        scales: pooling scales.
        scales_below: which scales fit, see `masked_pyramid_distance`.
        level_std: sigma per pair; None for 1.
        padding: whether cells that only see padding are `ignored` or `counted`.
        ramp_steps: t_ramp; 0 for none.
    """

    def __init__(
        self,
        review: ReviewChain,
        pairs: Sequence[tuple[int, int]],
        *,
        weight: float,
        foreground_share: float,
        masks: Literal["boxes", "none"],
        mask_values: MaskValues,
        scales: Sequence[Scale],
        scales_below: ScalesBelow,
        level_std: Sequence[float] | None,
        padding: Literal["ignored", "counted"],
        ramp_steps: float,
    ) -> None:
        super().__init__()
        self.review = review
        self.pairs = tuple(pairs)
        self.weight, self.foreground_share, self.ramp_steps = weight, foreground_share, ramp_steps
        self.masks, self.mask_values, self.padding = masks, mask_values, padding
        self.scales, self.scales_below = tuple(scales), scales_below
        self.level_std = tuple(level_std) if level_std is not None else (1.0,) * len(pairs)
        self._resized_levels: set[str] = set()

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        step: int,
    ) -> list[Term]:
        """Returns the terms `kdr.foreground` and `kdr.background`, or `kdr.feature` without masks. See `Method`."""
        distances = self.level_distances(student, teacher, boxes=boxes, image_sizes=image_sizes, batch_size=batch_size)
        weight, share = self.weight_at(step), self.foreground_share
        values = distances.sum(1)
        if self.masks == "none":
            return [Term("kdr.feature", values[0], weight)]
        return [
            Term("kdr.foreground", values[0], weight * share),
            Term("kdr.background", values[1], weight * (1 - share)),
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
        """Measures each region at each matched level: (2, L) foreground and background, or (1, L) without masks."""
        matched = [student[level] for level, _ in self.pairs]
        if self.padding == "counted":  # V = 1: every image is taken to fill its batch
            image_sizes = [batch_size] * len(matched[0])
        grids = {_grid(features) for features in (*matched, *(teacher[level] for _, level in self.pairs))}
        valid = {grid: valid_cells(image_sizes, batch_size, grid, device=matched[0].device) for grid in grids}
        padded = is_padded(image_sizes, batch_size)
        reviewed = self.review(matched, [~valid[_grid(features)][:, None] if padded else None for features in matched])
        stacked = padded_boxes(boxes) if self.masks == "boxes" else None
        distances = []
        for name, features, (_, level), std in zip(self.review.level_names, reviewed, self.pairs, self.level_std, strict=True):
            target = teacher[level]
            dtype = torch.promote_types(features.dtype, torch.float32)
            distance = masked_pyramid_distances(
                self._on_grid(features, _grid(target), name),
                target,
                self._region_weights(stacked, valid[_grid(target)], batch_size, dtype),
                scales=self.scales,
                scales_below=self.scales_below,
            )
            distances.append(distance / std**2)  # D is homogeneous: dividing both features by std divides it by std^2
        return torch.stack(distances, 1)

    def weight_at(self, step: int) -> float:
        """The method's weight lambda(t) after `step` optimiser steps."""
        return self.weight * (min(max(step / self.ramp_steps, 0.0), 1.0) if self.ramp_steps else 1.0)

    def logged_numbers(self) -> dict[str, Tensor]:
        """How much of the coarse level each link adds, such as `zeta.P5->P4`; none under gated fusion."""
        return {f"zeta.{name}": zeta.detach() for name, zeta in self.review.zetas().items()}

    def _region_weights(
        self, boxes_xyxy: Tensor | None, valid: Tensor, batch_size: tuple[int, int], dtype: torch.dtype
    ) -> Tensor:
        """The weights of the regions that are measured: (2, N, H, W) or (1, N, H, W)."""
        if boxes_xyxy is None:
            return valid.to(dtype)[None]
        foreground = foreground_mask(boxes_xyxy, valid, batch_size, values=self.mask_values, dtype=dtype)
        return torch.stack([foreground, background_mask(foreground, valid)])

    def _on_grid(self, reviewed: Tensor, grid: tuple[int, int], name: str) -> Tensor:
        if reviewed.shape[-2:] == grid:
            return reviewed
        if name not in self._resized_levels:
            self._resized_levels.add(name)
            _log.info("kdr: %s of the student, %s cells, is resized to the teacher's %s", name, tuple(reviewed.shape[-2:]), grid)
        return F.interpolate(reviewed, size=grid, mode="bilinear", align_corners=False)


def build_kdr(
    settings: KdrConfig,
    *,
    student: FeatureLevels,
    teacher: FeatureLevels,
    seed: int,
    total_steps: int,
    level_std: Mapping[int, float] | None,
) -> Kdr:
    """Builds the method from its settings.

    Args:
        settings: what the user set.
        student: the student's feature levels.
        teacher: the teacher's feature levels.
        seed: the trial's seed.
        total_steps: optimiser steps of the whole training; decides the `auto` ramp.
        level_std: teacher level -> standard deviation, needed under `normalisation: teacher_std`.

    Raises:
        ConfigError: if no level matches, a link is unknown, identity adapters do not fit, or a deviation is not positive.
    """
    pairs = match_levels(student.strides, teacher.strides)
    all_names = unique_level_names(student.strides)
    names = [all_names[level] for level, _ in pairs]
    if dropped := [name for name in all_names if name not in names]:
        _log.warning("kdr: levels %s of the student learn nothing: the teacher has none of their stride", ", ".join(dropped))
    review = ReviewChain(
        names,
        [student.channels[level] for level, _ in pairs],
        [teacher.channels[level] for _, level in pairs],
        links=_usable_links(settings.review_links, all_names, names),
        seed=address(seed, "kdr"),
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
        pairs,
        weight=settings.weight,
        foreground_share=settings.foreground_share,
        masks=settings.masks,
        mask_values=settings.mask_values,
        scales=settings.pyramid_scales,
        scales_below=settings.scales_below,
        level_std=_stds(pairs, names, level_std) if settings.normalisation == "teacher_std" else None,
        padding=settings.padding,
        ramp_steps=min(500.0, total_steps / 20) if settings.ramp == "auto" else settings.ramp,
    )


def _usable_links(links: Literal["all"] | Sequence[str], all_names: Sequence[str], names: Sequence[str]) -> list[str]:
    """The links between neighbouring matched levels; a known link that lost a level in the matching is dropped."""
    known, usable = _links_between(all_names), _links_between(names)
    if links == "all":
        return usable
    unknown = [link for link in links if link not in known]
    if unknown:
        raise ConfigError(
            f"distill.kdr.review_links: each must be one of {', '.join(known) or 'none'}, got {', '.join(unknown)}. "
            "A link joins two neighbouring levels of the student"
        )
    dropped = [link for link in links if link not in usable]
    if dropped:
        _log.warning("kdr: review links %s are dropped: the teacher has no such level", ", ".join(dropped))
    return [link for link in usable if link in links]


def _links_between(names: Sequence[str]) -> list[str]:
    return [f"{coarse}->{fine}" for fine, coarse in itertools.pairwise(names)]


def _stds(pairs: Sequence[tuple[int, int]], names: Sequence[str], level_std: Mapping[int, float] | None) -> list[float]:
    stds = {name: (level_std or {}).get(level) for name, (_, level) in zip(names, pairs, strict=True)}
    for name, std in stds.items():
        if std is None or not 0 < std < math.inf:
            raise ConfigError(
                "distill.kdr.normalisation: teacher_std needs a positive standard deviation of the teacher's features at every "
                f"level, got {std} at {name}. Check the teacher's weights, or use none"
            )
    return [std for std in stds.values() if std is not None]


def _grid(features: Tensor) -> tuple[int, int]:
    return features.shape[-2], features.shape[-1]
