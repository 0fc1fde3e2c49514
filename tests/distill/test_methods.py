from typing import Literal

import pytest
import torch

from kdr.config.distill import DistillConfig, KdrConfig
from kdr.distill.kdr import Kdr
from kdr.distill.method import FeatureLevels, Outputs, Setup, Term, weighted_sum
from kdr.distill.methods import Methods, Weight, build_methods
from tests.distill.scenes import gradient_of

LEVELS = FeatureLevels((8.0, 16.0), (4, 4))


def built(distill: DistillConfig, seed: int = 0, total_steps: int = 100) -> Methods:
    return build_methods(
        distill, Setup(LEVELS, LEVELS, seed=seed, total_steps=total_steps, teacher_std=(1.0, 2.0))
    )


def called(methods: Methods, step: int) -> dict[str, list[Term]]:
    draw = torch.Generator().manual_seed(0)
    outputs = [
        Outputs([torch.randn(2, 4, side, side, generator=draw) for side in (6, 3)]) for _ in "st"
    ]
    boxes = [torch.tensor([[0.0, 0.0, 20.0, 20.0]]), torch.zeros(0, 4)]
    terms: dict[str, list[Term]] = methods(
        *outputs, boxes=boxes, image_sizes=[(48, 48)] * 2, batch_size=(48, 48), step=step
    )
    return terms


def test_every_method_that_can_be_set_can_be_built() -> None:
    everything = DistillConfig(**{name: {} for name in DistillConfig.model_fields})
    assert list(built(everything)) == list(DistillConfig.model_fields)
    assert isinstance(built(everything)["kdr"], Kdr)


def test_without_methods_nothing_is_trained_beside_the_student() -> None:
    assert not list(built(DistillConfig()).parameters())
    assert not DistillConfig().needs()


@pytest.mark.parametrize(
    ("normalisation", "needed"),
    [("teacher_std", {"teacher_std"}), ("level_std", {"teacher_std"}), ("none", set())],
)
def test_the_teachers_spread_is_needed_where_features_are_divided_by_it(
    normalisation: Literal["teacher_std", "level_std", "none"], needed: set[str]
) -> None:
    assert DistillConfig(kdr=KdrConfig(normalisation=normalisation)).needs() == needed


@pytest.mark.parametrize(
    ("ramp", "total_steps", "weights"),
    [
        ("auto", 1000, {0: 0.0, 25: 1.5, 50: 3.0, 51: 3.0}),
        ("auto", 90_000, {0: 0.0, 250: 1.5, 500: 3.0}),
        (10, 1000, {0: 0.0, 5: 1.5, 10: 3.0, 999: 3.0}),
        (0, 1000, {0: 3.0, 7: 3.0}),
    ],
)
def test_the_weight_rises_along_the_ramp(
    ramp: Literal["auto"] | int, total_steps: int, weights: dict[int, float]
) -> None:
    methods = built(DistillConfig(kdr=KdrConfig(ramp=ramp, weight=3.0)), total_steps=total_steps)
    assert {step: methods.weights["kdr"].at(step) for step in weights} == pytest.approx(weights)


def test_each_term_is_multiplied_by_its_methods_weight_at_the_step() -> None:
    methods = built(DistillConfig(kdr=KdrConfig(ramp=10, weight=3.0, foreground_share=0.25)))
    full, half = called(methods, 10)["kdr"], called(methods, 5)["kdr"]
    assert [term.coefficient for term in full] == [0.75, 2.25]
    assert [term.coefficient for term in half] == [0.375, 1.125]
    assert [term.value for term in full] == [term.value for term in half]


def test_a_weight_without_a_ramp_applies_from_the_first_step() -> None:
    assert Weight(2.0).at(0) == 2.0


def test_the_loss_of_a_method_is_the_weighted_sum_of_its_terms() -> None:
    terms = [
        Term("a.x", torch.tensor(2.0, requires_grad=True), 0.5),
        Term("a.y", torch.tensor(4.0), 3.0),
    ]
    loss = weighted_sum(terms)
    torch.autograd.backward(loss)
    assert loss.item() == 13.0
    assert gradient_of(terms[0].value).item() == 0.5
