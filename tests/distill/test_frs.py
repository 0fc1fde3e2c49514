import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdr.config.baselines import FrsConfig
from kdr.config.distill import DistillConfig
from kdr.distill.frs import Frs, feature_richness, richness_mean, score_errors
from kdr.distill.method import FeatureLevels, Outputs, Setup, weighted_sum
from kdr.distill.methods import build_methods
from kdr.errors import ShapeMismatchError
from tests.distill.scenes import drawn, summed

CALL: dict[str, Any] = {
    "boxes": [torch.zeros(0, 4)] * 2,
    "image_sizes": [(64, 64)] * 2,
    "batch_size": (64, 64),
    "step": 0,
}


def built(channels: tuple[int, int] = (5, 5), **settings: Any) -> Frs:
    method = build_methods(DistillConfig(frs=FrsConfig(**settings)), setup(channels))["frs"]
    assert isinstance(method, Frs)
    return method.double()


def setup(channels: tuple[int, int]) -> Setup:
    student, teacher = (FeatureLevels((8.0, 16.0), (c, c)) for c in channels)
    return Setup(student, teacher, seed=0, total_steps=100)


def outputs(
    seed: int,
    channels: int = 5,
    anchors: int = 3,
    sides: tuple[int, ...] = (8, 4),
    spread: float = 2.0,
) -> Outputs:
    return Outputs(
        [drawn(seed + i, 2, channels, side, side) for i, side in enumerate(sides)],
        [spread * drawn(seed + 10 + i, 2, anchors, 4, side, side) for i, side in enumerate(sides)],
    )


def logits_of(detector: Outputs) -> Sequence[Tensor]:
    assert detector.class_logits is not None
    return detector.class_logits


def loss_by_loops(
    student: Outputs,
    teacher: Outputs,
    adapted: list[Tensor],
    feature_weight: float,
    score_weight: float,
) -> float:
    """FRS cell by cell, from its formulas (docs/method.md, A.7)."""

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    total = 0.0
    for s, t, of_student, of_teacher in zip(
        adapted, teacher.features, logits_of(student), logits_of(teacher), strict=True
    ):
        mass = features = scores = 0.0
        for n in range(t.shape[0]):
            for y in range(t.shape[2]):
                for x in range(t.shape[3]):
                    p = [sigmoid(logit) for logit in of_teacher[n, :, :, y, x].flatten().tolist()]
                    r = [sigmoid(logit) for logit in of_student[n, :, :, y, x].flatten().tolist()]
                    q = max(p)
                    mass += q
                    features += q * float((s[n, :, y, x] - t[n, :, y, x]).square().sum())
                    scores += q * sum(
                        -a * math.log(b) - (1 - a) * math.log(1 - b)
                        for a, b in zip(p, r, strict=True)
                    )
        total += (feature_weight * features + score_weight * scores) / mass
    return total


@pytest.mark.parametrize("channels", [(5, 5), (3, 5)])
def test_it_is_the_richness_weighted_mean_of_features_and_scores(channels: tuple[int, int]) -> None:
    frs = built(channels, feature_weight=0.3, score_weight=0.7)
    student, teacher = outputs(0, channels=channels[0]), outputs(100)
    terms = frs(student, teacher, **CALL)
    adapted = [
        frs.aligned.adapters[name](x).detach()
        for name, x in zip(("P3", "P4"), student.features, strict=True)
    ]
    assert weighted_sum(terms).item() == pytest.approx(
        loss_by_loops(student, teacher, adapted, 0.3, 0.7), rel=1e-10
    )
    assert [(term.name, term.coefficient) for term in terms] == [
        ("frs.feature", 0.3),
        ("frs.score", 0.7),
    ]


def test_richness_is_the_most_probable_class_of_any_box_in_a_cell() -> None:
    # [1, A, K, W], one row of cells
    logits = torch.tensor([[[-3.0, 1.0], [0.0, -1.0]], [[2.0, -9.0], [-2.0, 1.5]]])[None]
    torch.testing.assert_close(
        feature_richness(logits[..., None, :]), torch.tensor([[[2.0, 1.5]]]).sigmoid()
    )


def test_the_loss_is_0_where_the_teacher_sees_nothing() -> None:
    assert richness_mean(drawn(0, 2, 3, 3).square(), torch.zeros(2, 3, 3)) == 0
    none = Outputs(
        outputs(1).features,
        [torch.full((2, 3, 4, side, side), -1e4, dtype=torch.float64) for side in (8, 4)],
    )
    assert weighted_sum(built()(outputs(0), none, **CALL)) == 0


def test_the_score_loss_is_smallest_at_the_teachers_scores() -> None:
    teacher = outputs(100)
    logits = [x.clone().requires_grad_() for x in logits_of(teacher)]
    score = built()(Outputs(teacher.features, logits), teacher, **CALL)[1].value
    for gradient in torch.autograd.grad(score, logits):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_extreme_logits_have_finite_losses_and_gradients() -> None:
    student, teacher = outputs(0, spread=1e4), outputs(100, spread=1e4)
    logits = [x.requires_grad_() for x in logits_of(student)]
    loss = weighted_sum(built()(Outputs(student.features, logits), teacher, **CALL))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, logits))


def test_scores_are_resized_to_the_teachers_cells() -> None:
    student, teacher = outputs(0, sides=(9, 5)), outputs(100)
    grown = [
        torch.nn.functional.interpolate(x.flatten(1, 2), size=(side, side), mode="bilinear").view(
            2, 3, 4, side, side
        )
        for x, side in zip(logits_of(student), (8, 4), strict=True)
    ]
    expected = summed(
        richness_mean(score_errors(s, t), feature_richness(t))
        for s, t in zip(grown, logits_of(teacher), strict=True)
    )
    torch.testing.assert_close(built()(student, teacher, **CALL)[1].value, expected)


def test_unequal_boxes_or_classes_are_refused() -> None:
    with pytest.raises(
        ShapeMismatchError,
        match=r"distill\.frs: .* got \(2, 1, 4, 8, 8\) and \(2, 3, 4, 8, 8\)\. Use two",
    ):
        built()(outputs(0, anchors=1), outputs(100), **CALL)


def test_its_weight_is_that_of_the_published_table() -> None:
    # 0.005 per squared error, summed over 256 channels
    methods = build_methods(DistillConfig(frs=FrsConfig()), setup((256, 256)))
    assert methods.units([(100, 168), (50, 84)], 7.3) == pytest.approx(
        {"unit.frs.feature.P3": 1.28, "unit.frs.feature.P4": 1.28}
    )


def test_the_unit_is_the_coefficient_of_the_mean_squared_error_of_the_region() -> None:
    # where richness is even, the region is the whole map
    frs = built(feature_weight=0.3)
    student, teacher = outputs(0), outputs(100)
    even = teacher._replace(class_logits=[torch.zeros_like(x) for x in logits_of(teacher)])
    adapted = [
        adapter(x)
        for adapter, x in zip(frs.aligned.adapters.values(), student.features, strict=True)
    ]
    errors = [(a - t).square().mean() for a, t in zip(adapted, even.features, strict=True)]
    units = frs.units([(8, 8), (4, 4)], 0).values()
    expected = summed(unit * error for unit, error in zip(units, errors, strict=True))
    feature, _ = frs(student, even, **CALL)
    torch.testing.assert_close(feature.coefficient * feature.value, expected)
