import math

import pytest
import torch
from torch import Tensor

from kdr.distill.distance import masked_pyramid_distance
from kdr.distill.pkd import Pkd, pearson_distance, standardised
from kdr.errors import ConfigError
from tests.distill.scenes import drawn, make_method, make_scene


def correlations(student: Tensor, teacher: Tensor) -> list[float]:
    """Pearson's r of every channel from its definition, over all cells of all images."""
    found = []
    for channel in range(student.shape[1]):
        x, y = student[:, channel].flatten().tolist(), teacher[:, channel].flatten().tolist()
        mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
        covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
        squares_x, squares_y = sum((a - mean_x) ** 2 for a in x), sum((b - mean_y) ** 2 for b in y)
        found.append(covariance / math.sqrt(squares_x * squares_y))
    return found


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 3, 3, 1), (3, 1, 4, 4)])
def test_distance_is_one_minus_pearsons_correlation_of_each_channel(shape: tuple[int, ...]) -> None:
    student = drawn(0, *shape)
    teacher = drawn(1, *shape) + 0.5 * student
    num_cells = shape[0] * shape[2] * shape[3]
    expected = (
        sum(1 - r for r in correlations(student, teacher)) / shape[1] * (num_cells - 1) / num_cells
    )
    # 1e-6 is added to each deviation, as in the original
    assert pearson_distance(student, teacher).item() == pytest.approx(expected, rel=1e-4)


def test_scale_and_offset_of_a_channel_of_either_side_do_not_matter() -> None:
    student, teacher = drawn(0, 2, 4, 6, 6), drawn(1, 2, 4, 6, 6)
    scale, offset = torch.tensor([0.5, 2.0, 30.0, 7.0]).view(1, 4, 1, 1), drawn(2, 1, 4, 1, 1)
    before = pearson_distance(student, teacher)
    torch.testing.assert_close(
        pearson_distance(scale * student + offset, teacher), before, rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        pearson_distance(student, scale * teacher + offset), before, rtol=1e-5, atol=0
    )


def test_equal_features_are_at_distance_0_and_opposite_ones_at_2() -> None:
    features = drawn(0, 2, 3, 8, 8)
    assert pearson_distance(features, features) == 0
    assert pearson_distance(-features, features).item() == pytest.approx(2 * 127 / 128, rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 2, 2)])
def test_channels_without_spread_give_no_nan(shape: tuple[int, ...]) -> None:
    student = torch.ones(shape, dtype=torch.float64, requires_grad=True)
    teacher = drawn(1, *shape)
    distance = pearson_distance(student, teacher)
    (gradient,) = torch.autograd.grad(distance, student)
    assert distance.isfinite()
    assert gradient.isfinite().all()


def test_gradient_is_the_derivative_and_none_reaches_the_teacher() -> None:
    student, teacher = drawn(0, 2, 3, 3, 4).requires_grad_(), drawn(1, 2, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: pearson_distance(s, teacher), student)
    torch.autograd.backward(pearson_distance(student, teacher))
    assert teacher.grad is None


def test_it_is_computed_in_float32_under_autocast() -> None:
    student, teacher = drawn(0, 2, 8, 9, 9).bfloat16(), drawn(1, 2, 8, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = pearson_distance(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(
        pearson_distance(student.double(), teacher.double()).item(), rel=1e-4
    )


def test_standardised_channels_have_mean_0_and_deviation_1() -> None:
    found = standardised(5 + 3 * drawn(0, 2, 4, 6, 7))
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(
        found.std((0, 2, 3)), torch.ones(4, dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_it_is_half_of_kdrs_distance_between_standardised_features() -> None:
    student, teacher = drawn(0, 3, 4, 5, 7), drawn(1, 3, 4, 5, 7)
    ones = torch.ones(3, 5, 7, dtype=torch.float64)
    expected = (
        masked_pyramid_distance(standardised(student), standardised(teacher), ones, scales=["full"])
        / 2
    )
    torch.testing.assert_close(pearson_distance(student, teacher), expected)


def test_the_method_sums_over_levels() -> None:
    pkd = make_method(Pkd, channels=(5, 5), levels=("P3", "P5"))
    scene = make_scene(channels=(5, 5))
    (term,) = scene.terms(pkd)
    assert (term.name, term.coefficient) == ("pkd.feature", 1.0)
    expected = sum(pearson_distance(scene.student[level], scene.teacher[level]) for level in (0, 2))
    torch.testing.assert_close(term.value, expected)
    assert not list(pkd.parameters())


def test_unequal_channels_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"distill\.pkd: without adapters, .* equal channels, got 6 and 8 at P3\. .*cwd",
    ):
        make_method(Pkd)
