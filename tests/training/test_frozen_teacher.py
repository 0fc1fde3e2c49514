"""The frozen teacher computes what the methods need, with logits in the order of the classes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdr.config.detector import DetectorConfig
from kdr.config.trial import Trial
from kdr.data.loader import Batch
from kdr.detectors.build import build_detector
from kdr.training.frozen_teacher import FrozenTeacher
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import TrainingState, prepare

Make = Callable[..., Trial]


def first_batch(state: TrainingState) -> Batch:
    return next(state.training.epoch(1))


def pixels_of(state: TrainingState, batch: Batch) -> torch.Tensor:
    return state.model.student.pixels(batch.images, batch.image_sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distill", "runs"),
    [({"kdr": {}, "pkd": {}}, False), ({"frs": {}}, True), ({"kdr": {}, "frs": {}}, True)],
)
def test_the_teachers_head_runs_only_if_a_method_needs_its_logits(
    make: Make, shared: SharedParts, distill: dict[str, Any], runs: bool
) -> None:
    state = prepare(make({"distill": distill}), shared, torch.device("cpu"), 0)
    assert state.teacher is not None
    calls: list[str] = []
    head = state.teacher.detector.model.get_submodule("head")
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
        for name, module in head.named_children()
    ]
    batch = first_batch(state)
    outputs = state.teacher.outputs(batch, pixels_of(state, batch))
    for hook in hooks:
        hook.remove()
    assert calls == (["classification_head"] if runs else [])
    assert (outputs.class_logits is not None) is runs
    assert not any(level.requires_grad for level in outputs.features)


@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_logits_are_in_the_order_of_the_datas_classes(
    make: Make, shared: SharedParts, detector: str
) -> None:
    state = prepare(make({"distill": {}, "teacher": None}), shared, torch.device("cpu"), 0)
    config = DetectorConfig.model_validate(
        {"detector": detector, "backbone": "resnet18", "fpn_channels": 32}
    )
    teacher = build_detector(config, ["__background__", "a", "b", "c"], seed=0).eval()
    batch = first_batch(state)
    pixels = pixels_of(state, batch)
    chosen = (
        FrozenTeacher(teacher, shares_pixels=True, classes=torch.tensor([3, 1]))
        .outputs(batch, pixels)
        .class_logits
    )
    assert chosen is not None
    for found, all_classes in zip(
        chosen, teacher.class_logits(teacher.features(pixels)), strict=True
    ):
        assert torch.equal(found, all_classes[:, :, [3, 1]])


@pytest.mark.slow
def test_a_teacher_with_other_normalisation_gets_its_own_pixels(
    make: Make, shared: SharedParts
) -> None:
    state = prepare(make(), shared, torch.device("cpu"), 0)
    assert state.teacher is not None
    assert state.teacher.shares_pixels
    batch = first_batch(state)
    pixels = pixels_of(state, batch)
    own = FrozenTeacher(state.teacher.detector, shares_pixels=False).outputs(
        batch, torch.zeros_like(pixels)
    )
    for found, expected in zip(
        own.features, state.teacher.outputs(batch, pixels).features, strict=True
    ):
        assert torch.equal(found, expected)
