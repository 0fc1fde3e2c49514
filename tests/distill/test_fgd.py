import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kdr.config.baselines import FgdConfig
from kdr.config.detector import DetectorConfig
from kdr.distill.distance import masked_pyramid_distance
from kdr.distill.fgd import (
    Context,
    Fgd,
    attention_distance,
    channel_attention,
    focal_distances,
    focal_weights,
    spatial_attention,
)
from tests.distill.scenes import (
    Scene,
    bias_of,
    coco_grids,
    conv_of,
    drawn,
    gradient_of,
    make_method,
    make_scene,
    summed,
)

tensor = partial(torch.tensor, dtype=torch.float64)


def attentions_by_loops(features: Tensor, tau: float) -> tuple[list[list[float]], list[float]]:
    """Spatial (H, W) and channel attention (C,) of one image, from their formulas."""
    C, H, W = features.shape
    values = features.abs().tolist()
    cells = [
        [math.exp(sum(values[c][y][x] for c in range(C)) / C / tau) for x in range(W)]
        for y in range(H)
    ]
    channels = [math.exp(sum(map(sum, values[c])) / (H * W) / tau) for c in range(C)]
    total = sum(map(sum, cells))
    return [[H * W * cell / total for cell in row] for row in cells], [
        C * value / sum(channels) for value in channels
    ]


@pytest.mark.parametrize("temperature", [0.5, 0.8])
def test_attentions_are_softmaxes_of_mean_magnitudes(temperature: float) -> None:
    features = 3 * drawn(0, 2, 4, 3, 5)
    found = (
        spatial_attention(features, temperature=temperature),
        channel_attention(features, temperature=temperature),
    )
    for n in range(2):
        for attention, expected in zip(
            found, attentions_by_loops(features[n], temperature), strict=True
        ):
            torch.testing.assert_close(attention[n], tensor(expected))
    for attention in found:
        torch.testing.assert_close(attention.flatten(1).mean(1), torch.ones(2, dtype=torch.float64))


def test_foreground_weights_are_kept_and_background_weights_sum_to_1_in_each_image() -> None:
    foreground = torch.tensor([[[0.25, 0.0], [0.0, 0.0]], [[0.5, 0.5], [1.0, 1.0]]])
    weights = focal_weights(foreground, torch.ones(2, 2, 2, dtype=torch.bool))
    assert torch.equal(weights[0], foreground)
    assert weights[1].tolist() == [
        [[0.0, pytest.approx(1 / 3)], [pytest.approx(1 / 3)] * 2],
        [[0.0, 0.0], [0.0, 0.0]],
    ]


def focal_by_loops(student: Tensor, teacher: Tensor, weight: Tensor, tau: float) -> float:
    """FGD's equation 8 for one region: sums over cells and channels, mean over images."""
    total = 0.0
    for n in range(len(student)):
        cells, channels = attentions_by_loops(teacher[n], tau)
        squares = (student[n] - teacher[n]).square().tolist()
        for c, of_channel in enumerate(channels):
            for y, row in enumerate(cells):
                for x, of_cell in enumerate(row):
                    total += weight[n, y, x].item() * of_cell * of_channel * squares[c][y][x]
    return total / len(student)


def test_focal_distances_are_the_weighted_sums_of_squares() -> None:
    student, teacher = drawn(0, 2, 3, 4, 5), 2 * drawn(1, 2, 3, 4, 5)
    weights = drawn(2, 2, 2, 4, 5).relu()
    found = focal_distances(student, teacher, weights, temperature=0.5)
    expected = [focal_by_loops(student, teacher, weight, 0.5) for weight in weights]
    torch.testing.assert_close(found, tensor(expected))


def test_the_focal_part_is_kdrs_distance_of_weighted_features_times_channels_and_mass() -> None:
    # image weights m_n / N; attention to channels scales the features, attention to cells the
    # weights
    student, teacher = drawn(0, 3, 4, 5, 7), drawn(1, 3, 4, 5, 7)
    weights = focal_weights((drawn(2, 3, 5, 7) - 0.8).relu(), torch.ones(3, 5, 7, dtype=torch.bool))
    scale = channel_attention(teacher, temperature=0.5).sqrt()[:, :, None, None]
    for found, weight in zip(
        focal_distances(student, teacher, weights, temperature=0.5), weights, strict=True
    ):
        attended = weight * spatial_attention(teacher, temperature=0.5)
        images = (
            [(scale * student)[n : n + 1] for n in range(3)],
            [(scale * teacher)[n : n + 1] for n in range(3)],
        )
        expected = summed(
            4
            * mass.sum()
            / 3
            * masked_pyramid_distance(of_student, of_teacher, mass[None], scales=["full"])
            for of_student, of_teacher, mass in zip(*images, attended, strict=True)
        )
        torch.testing.assert_close(found, expected)


def test_without_attention_and_weights_it_is_the_sum_of_squares_of_an_image() -> None:
    student, teacher = drawn(0, 2, 3, 4, 5), drawn(1, 2, 3, 4, 5)
    found = focal_distances(student, teacher, torch.ones(1, 2, 4, 5), temperature=1e9)
    torch.testing.assert_close(found[0], F.mse_loss(student, teacher, reduction="sum") / 2)


def test_attention_distance_is_the_sum_of_absolute_differences() -> None:
    student, teacher = drawn(0, 2, 3, 4, 5), 2 * drawn(1, 2, 3, 4, 5)
    expected = 0.0
    for n in range(2):
        of_student, of_teacher = (
            attentions_by_loops(features[n], 0.5) for features in (student, teacher)
        )
        expected += sum(
            abs(a - b)
            for s, t in zip(of_student[0], of_teacher[0], strict=True)
            for a, b in zip(s, t, strict=True)
        )
        expected += sum(abs(a - b) for a, b in zip(of_student[1], of_teacher[1], strict=True))
    assert attention_distance(student, teacher, temperature=0.5).item() == pytest.approx(
        expected / 2
    )


def test_equal_features_are_at_distance_0() -> None:
    features = drawn(0, 2, 3, 4, 5)
    assert focal_distances(features, features, torch.ones(1, 2, 4, 5), temperature=0.5) == 0
    assert attention_distance(features, features, temperature=0.5) == 0


def test_gradients_are_the_derivatives_and_none_reaches_the_teacher() -> None:
    student, teacher = drawn(0, 2, 2, 3, 4).requires_grad_(), drawn(1, 2, 2, 3, 4).requires_grad_()
    weights = drawn(2, 2, 2, 3, 4).relu()
    assert torch.autograd.gradcheck(
        lambda s: focal_distances(s, teacher, weights, temperature=0.5), student
    )
    assert torch.autograd.gradcheck(
        lambda s: attention_distance(s, teacher, temperature=0.5), student
    )
    torch.autograd.backward(focal_distances(student, teacher, weights, temperature=0.5).sum())
    torch.autograd.backward(attention_distance(student, teacher, temperature=0.5))
    assert teacher.grad is None


def test_it_is_computed_in_float32_under_autocast() -> None:
    student, teacher = drawn(0, 2, 8, 9, 9).bfloat16(), drawn(1, 2, 8, 9, 9).bfloat16()
    weights = drawn(2, 1, 2, 9, 9).relu()
    with torch.autocast("cpu", torch.bfloat16):
        focal = focal_distances(student, teacher, weights.float(), temperature=0.5)
        attention = attention_distance(student, teacher, temperature=0.5)
    assert focal.dtype == attention.dtype == torch.float32
    exact = focal_distances(student.double(), teacher.double(), weights, temperature=0.5)
    assert focal.item() == pytest.approx(exact.item(), rel=1e-4)
    exact_attention = attention_distance(student.double(), teacher.double(), temperature=0.5)
    assert attention.item() == pytest.approx(exact_attention.item(), rel=1e-4)


def context_by_loops(context: Context, features: Tensor) -> Tensor:
    """The context that GcBlock adds to the cells of one image, (C,), from its formula."""
    logits = torch.einsum("c,chw->hw", context.attend.weight.flatten(), features)
    attention = (logits - logits.max()).exp()
    pooled = torch.einsum("chw,hw->c", features, attention / attention.sum())
    hidden = context.squeeze.weight[:, :, 0, 0] @ pooled + bias_of(context.squeeze)
    centred = hidden - hidden.mean()
    normed = (
        centred / (centred.square().mean() + 1e-5).sqrt() * context.norm.weight + context.norm.bias
    )
    return context.expand.weight[:, :, 0, 0] @ normed.clamp(min=0) + bias_of(context.expand)


def contexts_of(fgd: Fgd, level: str) -> list[Context]:
    """The contexts of student and teacher at one level."""
    found = [contexts[level] for contexts in (fgd.of_student, fgd.of_teacher)]
    return [context for context in found if isinstance(context, Context)]


def test_context_is_that_of_a_gcblock_and_starts_at_0() -> None:
    context, features = Context(6, seed=0).double(), drawn(0, 2, 6, 4, 5)
    assert (context(features) == 0).all()
    with torch.no_grad():
        for seed, parameter in enumerate(context.parameters()):
            parameter.add_(drawn(seed, *parameter.shape))
    found = context(features)
    assert found.shape == (2, 6, 1, 1)
    for n in range(2):
        torch.testing.assert_close(found[n].flatten(), context_by_loops(context, features[n]))


def fgd_by_loops(fgd: Fgd, scene: Scene) -> dict[str, float]:
    """FGD's four sums (docs/method.md, A.3), level by level and box by box, on the padded batch."""
    sums = dict.fromkeys(("fgd.foreground", "fgd.background", "fgd.attention", "fgd.relation"), 0.0)
    (H_b, W_b), N = scene.batch_size, len(scene.boxes)
    for level, teacher in enumerate(scene.teacher):
        name = f"P{3 + level}"
        adapter = conv_of(fgd.aligned.adapters[name])
        student = F.conv2d(scene.student[level], adapter.weight, adapter.bias)
        H, W = teacher.shape[-2:]
        foreground = torch.zeros(N, H, W, dtype=torch.float64)
        for n, boxes in enumerate(scene.boxes):
            for x1, y1, x2, y2 in boxes.tolist():
                top, left = math.floor(y1 * H / H_b), math.floor(x1 * W / W_b)
                bottom = max(math.ceil(y2 * H / H_b), top + 1)
                right = max(math.ceil(x2 * W / W_b), left + 1)
                area = (min(bottom, H) - top) * (min(right, W) - left)
                foreground[n, top:bottom, left:right] = foreground[n, top:bottom, left:right].clamp(
                    min=1 / area
                )
        background = (foreground == 0).double()
        background = background / background.sum((1, 2), keepdim=True).clamp(min=1)
        sums["fgd.foreground"] += focal_by_loops(student, teacher, foreground, 0.5)
        sums["fgd.background"] += focal_by_loops(student, teacher, background, 0.5)
        for n in range(N):
            pairs = zip(
                attentions_by_loops(student[n], 0.5),
                attentions_by_loops(teacher[n], 0.5),
                strict=True,
            )
            for of_student, of_teacher in pairs:
                gaps = tensor(of_student) - tensor(of_teacher)
                sums["fgd.attention"] += gaps.abs().sum().item() / N
            shifted = [
                features[n] + context_by_loops(context, features[n])[:, None, None]
                for context, features in zip(
                    contexts_of(fgd, name), (student, teacher), strict=True
                )
            ]
            sums["fgd.relation"] += (shifted[0] - shifted[1]).square().sum().item() / N
    return sums


def test_the_method_is_fgd_by_its_formulas() -> None:
    weights = {"foreground": 0.5, "background": 0.2, "attention": 0.1, "relation": 0.3}
    settings: dict[str, Any] = {f"{name}_weight": weight for name, weight in weights.items()}
    fgd = make_method(Fgd, stirred=True, **settings)
    scene = make_scene()
    terms = scene.terms(fgd)
    assert {term.name: term.coefficient for term in terms} == {
        f"fgd.{name}": weight for name, weight in weights.items()
    }
    with torch.no_grad():
        expected = fgd_by_loops(fgd, scene)
    assert {term.name: term.value.item() for term in terms} == {
        name: pytest.approx(value, rel=1e-6) for name, value in expected.items()
    }


def test_the_relation_starts_as_the_sum_of_squares_of_an_image() -> None:
    fgd, scene = make_method(Fgd, channels=(8, 8)), make_scene(channels=(8, 8))
    expected = summed(
        (s - t).square().sum() / 3 for s, t in zip(scene.student, scene.teacher, strict=True)
    )
    relation = {term.name: term.value for term in scene.terms(fgd)}["fgd.relation"]
    torch.testing.assert_close(relation, expected)


def test_the_contexts_of_both_sides_are_trained() -> None:
    fgd, scene = make_method(Fgd, stirred=True), make_scene()
    torch.autograd.backward(scene.loss(fgd))
    for level in fgd.aligned.levels.names:
        for context in contexts_of(fgd, level):
            assert (gradient_of(context.expand.weight) != 0).any()


@pytest.mark.parametrize(
    ("student", "finest", "foreground", "background", "relation"),
    [
        ("retinanet", 3, 1.9, 0.13, (21.5, 5.4, 1.3, 0.35, 0.10)),
        ("fcos", 3, 3.0, 0.2, (34, 8.6, 2.2, 0.56, 0.16)),
        ("faster_rcnn", 2, 0.09, 0.006, (8.6, 2.2, 0.54, 0.13)),
    ],
)
def test_its_units_are_the_sums_of_the_papers_weights(
    student: str,
    finest: int,
    foreground: float,
    background: float,
    relation: tuple[float, ...],
) -> None:
    detector = DetectorConfig.model_validate({"detector": student})
    settings = FgdConfig().resolved(student=detector, teacher=detector).model_dump()
    fgd = make_method(Fgd, channels=(256, 256), finest=finest, **settings)
    units = fgd.units(coco_grids(finest), 7.3)
    names = [f"P{finest + i}" for i in range(len(relation))]
    assert [units[f"fgd.foreground.{name}"] for name in names] == pytest.approx(
        [foreground] * len(names), rel=0.05
    )
    assert [units[f"fgd.background.{name}"] for name in names] == pytest.approx(
        [background] * len(names), rel=0.07
    )
    assert [units[f"fgd.relation.{name}"] for name in names] == pytest.approx(relation, rel=0.05)
    assert len(units) == 3 * len(names)
