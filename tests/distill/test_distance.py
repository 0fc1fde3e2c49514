import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdr.config.distill import Scale
from kdr.distill.distance import (
    ScalesBelow,
    masked_pyramid_distance,
    masked_pyramid_distances,
    squared_errors,
    used_scales,
)
from kdr.errors import ShapeMismatchError
from tests.distill.scenes import Grid, drawn

ALL: tuple[Scale, ...] = ("full", 4, 2, 1)
SCALE_SETS = st.sets(st.sampled_from([*ALL, 3, 7]), min_size=1).map(tuple)


def drawn_weights(seed: int, *shape: int) -> Tensor:
    """Non-negative weights, a third of them 0."""
    weights = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return weights * (torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1)) > 1 / 3)


def bins(size: int, k: int) -> list[range]:
    return [range(i * size // k, math.ceil((i + 1) * size / k)) for i in range(k)]


def distance_by_loops(
    student: Tensor, teacher: Tensor, weight: Tensor, scales: Sequence[Scale], below: ScalesBelow
) -> float:
    """docs/method.md, F.4, written out bin by bin."""
    N, _, H, W = student.shape
    limit = min(H, W) if below == "side" else H
    numbers = sorted((k for k in scales if k != "full" and k < limit), reverse=True)
    used: list[Scale] = ["full", *numbers] if "full" in scales or not numbers else [*numbers]
    total = norm = 0.0
    for i, scale in enumerate(used):
        rows = bins(H, H if scale == "full" else int(scale))
        columns = bins(W, W if scale == "full" else int(scale))
        of_scale = 0.0
        for n in range(N):
            found = []
            for row in rows:
                for column in columns:
                    cells = [(y, x) for y in row for x in column]
                    mass = sum(weight[n, y, x].item() for y, x in cells)
                    if mass > 0:
                        difference = [student[n, :, y, x] - teacher[n, :, y, x] for y, x in cells]
                        weighted = [
                            weight[n, y, x] * d for (y, x), d in zip(cells, difference, strict=True)
                        ]
                        pooled = torch.stack(weighted).sum(0)
                        found.append((mass / len(cells), (pooled / mass).square().mean().item()))
            of_image = sum(mass for mass, _ in found)
            of_scale += sum(mass / of_image * square for mass, square in found) / N
        total += 0.5**i * of_scale
        norm += 0.5**i
    return total / norm


@pytest.mark.parametrize("below", ["side", "height"])
@given(
    shape=st.tuples(*[st.integers(1, top) for top in (2, 2, 9, 9)]),
    scales=SCALE_SETS,
    seed=st.integers(0, 99),
)
def test_distance_is_the_mean_of_squared_masked_means_per_bin(
    below: ScalesBelow, shape: tuple[int, ...], scales: Sequence[Scale], seed: int
) -> None:
    student = drawn(seed, *shape)
    teacher = drawn(seed + 1, *shape)
    weight = drawn_weights(seed, shape[0], *shape[2:])
    found = masked_pyramid_distance(student, teacher, weight, scales=scales, scales_below=below)
    assert found.item() == pytest.approx(
        distance_by_loops(student, teacher, weight, scales, below), rel=1e-10, abs=1e-14
    )


def hierarchical_context_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """ReviewKD's HCL from its formula: mean squared errors at full size and of adaptive means."""
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for k in (4, 2, 1):
        if k >= student.shape[2]:
            continue
        weight /= 2
        loss = loss + weight * F.mse_loss(
            F.adaptive_avg_pool2d(student, k), F.adaptive_avg_pool2d(teacher, k)
        )
        total += weight
    return loss / total


@pytest.mark.parametrize(
    "grid", [(25, 34), (13, 17), (7, 9), (4, 5), (2, 3), (6, 2), (5, 1), (1, 1)]
)
def test_with_weight_1_everywhere_it_is_reviewkds_hierarchical_context_loss(grid: Grid) -> None:
    student, teacher = drawn(0, 2, 5, *grid), drawn(1, 2, 5, *grid)
    ones = torch.ones(2, *grid, dtype=torch.float64)
    found = masked_pyramid_distance(student, teacher, ones, scales=ALL, scales_below="height")
    torch.testing.assert_close(
        found, hierarchical_context_loss(student, teacher), rtol=1e-12, atol=0
    )


def test_at_full_scale_it_is_the_mean_squared_error() -> None:
    student, teacher = drawn(0, 3, 4, 5, 7), drawn(1, 3, 4, 5, 7)
    ones = torch.ones(3, 5, 7, dtype=torch.float64)
    found = masked_pyramid_distance(student, teacher, ones, scales=["full"])
    torch.testing.assert_close(found, F.mse_loss(student, teacher), rtol=1e-13, atol=0)


def test_equal_features_are_at_distance_0() -> None:
    features = drawn(0, 2, 3, 8, 9)
    assert masked_pyramid_distance(features, features, drawn_weights(0, 2, 8, 9), scales=ALL) == 0


def test_foreground_and_background_add_up_to_the_whole_by_their_shares() -> None:
    student, teacher = drawn(0, 1, 3, 8, 9), drawn(1, 1, 3, 8, 9)
    foreground = (drawn_weights(2, 1, 8, 9) > 0).double()
    share = foreground.mean()
    of_fg, of_bg, of_all = masked_pyramid_distances(
        student,
        teacher,
        torch.stack([foreground, 1 - foreground, torch.ones_like(foreground)]),
        scales=["full"],
    )
    torch.testing.assert_close(share * of_fg + (1 - share) * of_bg, of_all)


@settings(max_examples=20)
@given(seed=st.integers(0, 99))
def test_a_coarser_scale_that_divides_the_map_never_has_a_larger_distance(seed: int) -> None:
    student = drawn(seed, 2, 3, 8, 12)
    teacher = drawn(seed + 1, 2, 3, 8, 12)
    weight = drawn_weights(seed, 2, 8, 12)
    full, four, two, one = (
        masked_pyramid_distance(student, teacher, weight, scales=[k]).item() for k in ALL
    )
    assert full >= four >= two >= one > 0


SYMMETRIES = {
    "permuting images": lambda s, t, w: (s.flip(0), t.flip(0), w.flip(0)),
    "duplicating images": lambda s, t, w: (
        s.repeat(2, 1, 1, 1),
        t.repeat(2, 1, 1, 1),
        w.repeat(2, 1, 1),
    ),
    "scaling the weights": lambda s, t, w: (s, t, 1e-6 * w),
    "scaling one image's weights": lambda s, t, w: (
        s,
        t,
        w * torch.tensor([3.0, 0.1, 7.0]).view(3, 1, 1),
    ),
    "adding a constant to both": lambda s, t, w: (s + 2.5, t + 2.5, w),
    "mirroring": lambda s, t, w: (s.flip(3), t.flip(3), w.flip(2)),
    "turning upside down": lambda s, t, w: (s.flip(2), t.flip(2), w.flip(1)),
    "changing features where the weight is 0": lambda s, t, w: (s + 9 * (w == 0)[:, None], t, w),
    "channels last in memory": lambda s, t, w: (s.to(memory_format=torch.channels_last), t, w),
}


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_nothing_changes_under(symmetry: str) -> None:
    parts = drawn(0, 3, 4, 8, 12), drawn(1, 3, 4, 8, 12), drawn_weights(0, 3, 8, 12)
    before = masked_pyramid_distance(*parts, scales=ALL)
    torch.testing.assert_close(
        masked_pyramid_distance(*SYMMETRIES[symmetry](*parts), scales=ALL), before
    )


@settings(max_examples=20)
@given(factor=st.floats(0.01, 100))
def test_distance_is_homogeneous_of_degree_two(factor: float) -> None:
    student = drawn(0, 2, 3, 7, 9)
    teacher = drawn(1, 2, 3, 7, 9)
    weight = drawn_weights(0, 2, 7, 9)
    before = masked_pyramid_distance(student, teacher, weight, scales=ALL)
    after = masked_pyramid_distance(factor * student, factor * teacher, weight, scales=ALL)
    torch.testing.assert_close(after, factor**2 * before)


def test_doubling_the_resolution_leaves_the_full_scale_unchanged() -> None:
    parts = drawn(0, 2, 3, 5, 6), drawn(1, 2, 3, 5, 6), drawn_weights(0, 2, 5, 6)
    doubled = [part.repeat_interleave(2, -1).repeat_interleave(2, -2) for part in parts]
    before, after = (
        masked_pyramid_distance(*either, scales=["full"]) for either in (parts, doubled)
    )
    torch.testing.assert_close(after, before)


def test_an_image_without_weight_adds_nothing_and_gets_no_gradient() -> None:
    student = drawn(0, 2, 3, 6, 6).requires_grad_()
    teacher = drawn(1, 2, 3, 6, 6)
    weight = drawn_weights(0, 2, 6, 6)
    weight[1] = 0
    both = masked_pyramid_distance(student, teacher, weight, scales=ALL)
    alone = masked_pyramid_distance(student[:1], teacher[:1], weight[:1], scales=ALL)
    torch.testing.assert_close(both, alone / 2)  # mean over images
    (gradient,) = torch.autograd.grad(both, student)
    assert gradient.isfinite().all()
    assert (gradient[0] != 0).any()
    assert (gradient[1] == 0).all()


def test_regions_measured_together_equal_regions_measured_alone() -> None:
    student = drawn(0, 2, 3, 7, 9)
    teacher = drawn(1, 2, 3, 7, 9)
    weights = drawn_weights(0, 3, 2, 7, 9)
    together = masked_pyramid_distances(student, teacher, weights, scales=ALL)
    alone = torch.stack(
        [masked_pyramid_distance(student, teacher, weight, scales=ALL) for weight in weights]
    )
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("grid", [(5, 7), (1, 1), (4, 2)])
def test_gradient_is_the_derivative(grid: Grid) -> None:
    student, teacher = drawn(0, 2, 2, *grid).requires_grad_(), drawn(1, 2, 2, *grid)
    weights = drawn_weights(0, 2, 2, *grid)
    assert torch.autograd.gradcheck(
        lambda s: masked_pyramid_distances(s, teacher, weights, scales=ALL),
        student,
        fast_mode=True,
    )


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = drawn(0, 1, 2, 5, 5).requires_grad_(), drawn(1, 1, 2, 5, 5).requires_grad_()
    torch.autograd.backward(
        masked_pyramid_distance(student, teacher, torch.ones(1, 5, 5), scales=ALL)
    )
    assert student.grad is not None
    assert teacher.grad is None


@pytest.mark.parametrize(
    ("scales", "grid", "below", "used"),
    [
        (ALL, (13, 17), "side", ["full", 4, 2, 1]),
        ((1, 4, "full", 2), (5, 4), "side", ["full", 2, 1]),
        (ALL, (5, 2), "side", ["full", 1]),
        (ALL, (5, 2), "height", ["full", 4, 2, 1]),
        (ALL, (2, 3), "height", ["full", 1]),
        ((4, 2), (13, 17), "side", [4, 2]),
        ((4,), (4, 9), "side", ["full"]),
        (ALL, (1, 1), "side", ["full"]),
        ((1,), (1, 1), "height", ["full"]),
    ],
)
def test_scales_that_do_not_fit_are_skipped_and_full_is_the_last_resort(
    scales: Sequence[Scale], grid: Grid, below: ScalesBelow, used: list[Scale]
) -> None:
    assert used_scales(scales, grid, below=below) == used


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_are_measured_in_float32_even_under_autocast(
    dtype: torch.dtype,
) -> None:
    student = drawn(0, 2, 8, 9, 9).to(dtype)
    teacher = drawn(1, 2, 8, 9, 9).to(dtype)
    weight = drawn_weights(0, 2, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = masked_pyramid_distance(student, teacher, weight.float(), scales=ALL)
    assert found.dtype == torch.float32
    exact = masked_pyramid_distance(student.double(), teacher.double(), weight, scales=ALL)
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("student", "teacher", "weight"),
    [
        ((2, 3, 4, 4), (2, 3, 4, 5), (2, 4, 4)),
        ((2, 3, 4, 4), (2, 4, 4, 4), (2, 4, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 4), (2, 4, 5)),
    ],
)
def test_unequal_shapes_are_refused(
    student: tuple[int, ...], teacher: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    with pytest.raises(ShapeMismatchError, match="must agree"):
        masked_pyramid_distance(
            torch.zeros(student), torch.zeros(teacher), torch.zeros(weight), scales=ALL
        )


def test_squared_errors_are_means_over_channels_of_weighted_squares() -> None:
    student, teacher, channels = drawn(0, 2, 3, 4, 5), drawn(1, 2, 3, 4, 5), drawn(2, 2, 3).abs()
    squares = (student - teacher).square()
    torch.testing.assert_close(squared_errors(student, teacher), squares.mean(1))
    torch.testing.assert_close(
        squared_errors(student, teacher, channel_weights=channels),
        torch.einsum("nchw,nc->nhw", squares, channels) / 3,
    )


def test_squared_errors_are_in_float32_under_autocast_without_a_teacher_gradient() -> None:
    student = drawn(0, 2, 3, 4, 5).bfloat16().requires_grad_()
    teacher = drawn(1, 2, 3, 4, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = squared_errors(student, teacher)
    assert found.dtype == torch.float32
    torch.autograd.backward(found.sum())
    assert student.grad is not None
    assert teacher.grad is None


def test_squared_errors_of_unequal_shapes_are_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="must agree"):
        squared_errors(torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3, 3))
