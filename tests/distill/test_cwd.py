import math

import pytest
import torch
from torch import Tensor

from kdr.distill.cwd import Cwd, channel_divergence
from kdr.errors import ShapeMismatchError
from tests.distill.scenes import drawn, gradient_of, make_method, make_scene, summed


def divergence_by_loops(student: Tensor, teacher: Tensor, tau: float) -> float:
    """The mean of sum_i p_i log(p_i / q_i) over images and channels, times tau squared."""
    total = 0.0
    for n in range(student.shape[0]):
        for c in range(student.shape[1]):
            p, q = (
                [math.exp(value / tau) for value in features[n, c].flatten().tolist()]
                for features in (teacher, student)
            )
            p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return tau**2 * total / (student.shape[0] * student.shape[1])


@pytest.mark.parametrize("temperature", [1.0, 0.5, 4.0])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 1, 1)])
def test_it_is_the_divergence_of_each_channels_distribution_over_cells(
    shape: tuple[int, ...], temperature: float
) -> None:
    student, teacher = drawn(0, *shape), drawn(1, *shape)
    found = channel_divergence(student, teacher, temperature=temperature)
    assert found.item() == pytest.approx(
        divergence_by_loops(student, teacher, temperature), rel=1e-12, abs=1e-15
    )


def test_adding_a_constant_to_a_channel_changes_nothing() -> None:
    student, teacher = drawn(0, 2, 4, 5, 5), drawn(1, 2, 4, 5, 5)
    before = channel_divergence(student, teacher, temperature=1.0)
    torch.testing.assert_close(
        channel_divergence(student + drawn(2, 2, 4, 1, 1), teacher, temperature=1.0), before
    )


def test_a_high_temperature_leaves_half_the_mean_squared_error_of_centred_features() -> None:
    # KL of two nearly even distributions is half the variance of the difference of their logits
    student, teacher = drawn(0, 1, 2, 6, 6), drawn(1, 1, 2, 6, 6)
    difference = student - teacher
    expected = difference.var((2, 3), correction=0).mean() / 2
    torch.testing.assert_close(
        channel_divergence(student, teacher, temperature=1e4), expected, rtol=1e-3, atol=0
    )


def test_equal_features_are_at_distance_0() -> None:
    features = drawn(0, 2, 3, 8, 8)
    assert channel_divergence(features, features, temperature=2.0) == 0


def test_large_logits_stay_finite() -> None:
    student = (1e4 * drawn(0, 1, 2, 8, 8)).float().requires_grad_()
    teacher = (1e4 * drawn(1, 1, 2, 8, 8)).float()
    distance = channel_divergence(student, teacher, temperature=1.0)
    torch.autograd.backward(distance)
    assert distance.isfinite()
    assert gradient_of(student).isfinite().all()


def test_gradient_is_the_derivative_and_none_reaches_the_teacher() -> None:
    student, teacher = drawn(0, 2, 2, 3, 4).requires_grad_(), drawn(1, 2, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: channel_divergence(s, teacher, temperature=0.7), student
    )
    torch.autograd.backward(channel_divergence(student, teacher, temperature=0.7))
    assert teacher.grad is None


def test_it_is_computed_in_float32_under_autocast() -> None:
    student, teacher = drawn(0, 2, 8, 9, 9).bfloat16(), drawn(1, 2, 8, 9, 9).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = channel_divergence(student, teacher, temperature=1.0)
    assert found.dtype == torch.float32
    exact = channel_divergence(student.double(), teacher.double(), temperature=1.0)
    assert found.item() == pytest.approx(exact.item(), rel=1e-4)


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="must agree"):
        channel_divergence(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 4), temperature=1.0)


def test_the_method_sums_over_levels_adapted_where_channels_differ() -> None:
    cwd, scene = make_method(Cwd, temperature=2.0, stirred=True), make_scene()
    (term,) = scene.terms(cwd)
    assert (term.name, term.coefficient) == ("cwd.divergence", 1.0)
    expected = summed(
        channel_divergence(cwd.aligned.adapters[f"P{3 + i}"](student), teacher, temperature=2.0)
        for i, (student, teacher) in enumerate(zip(scene.student, scene.teacher, strict=True))
    )
    torch.testing.assert_close(term.value, expected)
    assert not list(make_method(Cwd, channels=(5, 5)).parameters())
