"""The distance between two feature maps: weighted mean squares at several pooling scales.

Equations: docs/method.md, F.4. Always in float32 (float64 stays float64), even under autocast.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.config.distill import Scale
from kdr.errors import ShapeMismatchError

ScalesBelow = Literal["side", "height"]


def masked_pyramid_distance(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    *,
    scales: Sequence[Scale],
    scales_below: ScalesBelow = "side",
) -> Tensor:
    """Returns the distance of student features from the teacher's, averaged over pooling scales.

    Equations: docs/method.md, F.4. With weight 1 everywhere and `scales_below="height"` this is
    ReviewKD's hierarchical context loss (Chen et al., CVPR 2021).

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        weight: (N, H, W) non-negative weights; an image whose weights are all 0 contributes 0.
        scales: "full" or the side k of a k x k grid. Scales that do not fit are skipped; if none
            fits, "full" is used.
        scales_below: whether k must be below the shorter side of the map or below its height.

    Returns:
        Scalar, mean over images, in units of squared feature.

    Raises:
        ShapeMismatchError: if the feature maps differ in shape, or the weight differs in cells.
    """
    return masked_pyramid_distances(
        student, teacher, weight[None], scales=scales, scales_below=scales_below
    )[0]


def masked_pyramid_distances(
    student: Tensor,
    teacher: Tensor,
    weights: Tensor,
    *,
    scales: Sequence[Scale],
    scales_below: ScalesBelow = "side",
) -> Tensor:
    """Returns `masked_pyramid_distance` of two feature maps under J weightings at once: (J,).

    Masked pooling is one matrix product of the difference with (weights x pooling matrices). It
    reads the difference once for all regions and scales, and its gradient is deterministic on a
    GPU, unlike that of adaptive pooling.

    Args:
        student: (N, C, H, W), see `masked_pyramid_distance`.
        teacher: (N, C, H, W).
        weights: (J, N, H, W) non-negative.
        scales: see `masked_pyramid_distance`.
        scales_below: see `masked_pyramid_distance`.

    Raises:
        ShapeMismatchError: see `masked_pyramid_distance`.
    """
    num_images, _, height, width = student.shape
    if student.shape != teacher.shape or weights.shape[1:] != (num_images, height, width):
        raise ShapeMismatchError(
            "distill: student features, teacher features and weights must agree in images and "
            f"cells, and features in channels, got {tuple(student.shape)}, {tuple(teacher.shape)} "
            f"and {tuple(weights.shape)}. Project and resize first"
        )
    used = used_scales(scales, (height, width), below=scales_below)
    # halved per scale that is used, not per scale that is set: ReviewKD's rule
    halves = [0.5**i for i in range(len(used))]
    omegas = [half / sum(halves) for half in halves]
    # 16-bit sums over thousands of squares lose digits, or overflow in fp16
    with torch.autocast(student.device.type, enabled=False):
        difference = _difference(student, teacher)
        weights = weights.detach().to(difference.dtype)
        total = difference.new_zeros(len(weights))
        if used[0] == "full":  # no pooling matrix: it would be (H W) x (H W)
            total = total + omegas[0] * _cell_distances(difference, weights)
        pooled = [(k, omega) for k, omega in zip(used, omegas, strict=True) if k != "full"]
        if pooled:
            total = total + _pooled_distances(difference, weights, pooled)
    return total


def squared_errors(
    student: Tensor, teacher: Tensor, *, channel_weights: Tensor | None = None
) -> Tensor:
    """Returns the squared difference of each cell, as a mean over channels: (N, H, W).

    Args:
        student: (N, C, H, W) student features, already projected to the teacher's channels.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
        channel_weights: (N, C) weights of the squares before their mean; 1 by default.

    Raises:
        ShapeMismatchError: if the two feature maps differ in shape.
    """
    refuse_unequal_shapes(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        squares = _difference(student, teacher).square()
        if channel_weights is not None:
            squares = squares * channel_weights.detach().to(squares.dtype)[:, :, None, None]
        return squares.mean(1)


def refuse_unequal_shapes(student: Tensor, teacher: Tensor) -> None:
    """Raises ShapeMismatchError unless both features have one shape (N, C, H, W)."""
    if student.shape != teacher.shape:
        raise ShapeMismatchError(
            "distill: student and teacher features must agree in images, channels and cells, "
            f"got {tuple(student.shape)} and {tuple(teacher.shape)}. Project and resize first"
        )


def used_scales(
    scales: Sequence[Scale], grid: tuple[int, int], *, below: ScalesBelow
) -> list[Scale]:
    """Returns the scales that fit a map of (H, W) cells, largest first; `full` if no other fits."""
    limit = min(grid) if below == "side" else grid[0]
    numbers = sorted({k for k in scales if k != "full" and k < limit}, reverse=True)
    return ["full", *numbers] if "full" in scales or not numbers else [*numbers]


def _difference(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns student minus teacher, in float32 or better."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype) - teacher.detach()


def _cell_distances(difference: Tensor, weights: Tensor) -> Tensor:
    """Returns d_full: weighted mean over cells, mean over channels and images: (J,)."""
    energy = difference.square().mean(1)  # (N, H, W)
    mass = weights.sum((2, 3))  # (J, N)
    coefficient = weights * (_reciprocal(mass) / len(difference))[:, :, None, None]
    return (coefficient * energy).sum((1, 2, 3))


def _pooled_distances(
    difference: Tensor, weights: Tensor, scales: Sequence[tuple[int, float]]
) -> Tensor:
    """Returns the sum of omega d_k over (scale k, omega), d_k from k x k masked means: (J,)."""
    num_images, _, height, width = difference.shape
    # (H W, Q)
    pooling = torch.cat([_pooling_matrix(height, width, k, like=difference) for k, _ in scales], 1)
    # (N, H W, J, Q): Q is 21 for the scales 4, 2 and 1, so this is small compared with the features
    weighted = weights.permute(1, 2, 3, 0).flatten(1, 2)[..., None] * pooling[:, None, :]
    mass = weighted.sum(1)  # (N, J, Q)
    sums = difference.flatten(2) @ weighted.flatten(2)  # (N, C, J Q)
    # masked mean per bin, then squared: pooling the masked product would shrink bins with few cells
    energy = (sums * _reciprocal(mass).flatten(1)[:, None]).square().mean(1).view_as(mass)
    shares = [
        omega * part * _reciprocal(part.sum(-1, keepdim=True))
        for (_, omega), part in zip(
            scales, torch.split(mass, [k * k for k, _ in scales], -1), strict=True
        )
    ]
    return (torch.cat(shares, -1) * energy).sum((0, 2)) / num_images


def _pooling_matrix(height: int, width: int, k: int, *, like: Tensor) -> Tensor:
    """Returns adaptive average pooling to k x k as a matrix (H W, k k).

    Pooling is linear, so the columns of its matrix are the pooled unit maps. Bins overlap where k
    does not divide the side, exactly as torch's do.
    """
    rows, columns = (
        F.adaptive_avg_pool1d(torch.eye(size, dtype=like.dtype, device=like.device), k)
        for size in (height, width)
    )  # (H, k), (W, k)
    return (rows[:, None, :, None] * columns[None, :, None, :]).reshape(height * width, k * k)


def _reciprocal(mass: Tensor) -> Tensor:
    """Returns 1 / mass, and 0 for a mass of 0: a bin or an image without weight contributes
    nothing.
    """
    return torch.where(mass > 0, 1 / mass, 0)
