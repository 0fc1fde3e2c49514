"""Teachers from files: features always, class logits only if their head is loaded."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdr.config.trial import Trial
from kdr.errors import WeightsError
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts

TEACHER: dict[str, Any] = {
    "backbone": "resnet18",
    "fpn_channels": 32,
    "weights_layout": "mmdetection",
}
CPU = torch.device("cpu")


@pytest.fixture
def with_file(
    make: Callable[..., Trial], mmdetection_file: Callable[..., str]
) -> Callable[..., Trial]:
    def trial(categories: tuple[str, ...] | None, changes: dict[str, Any] | None = None) -> Trial:
        weights = mmdetection_file(categories)
        return make({"teacher": {**TEACHER, "weights": weights}, **(changes or {})})

    return trial


def test_features_need_no_class_names(with_file: Callable[..., Trial], shared: SharedParts) -> None:
    trial = with_file(None)
    teacher = shared.teacher(trial, CPU)
    assert teacher.categories == shared.splits(trial.config.data).categories
    assert {key.rsplit(".", 1)[0] for key in teacher.unloaded_head} == {
        "head.classification_head.cls_logits"
    }


def test_class_logits_from_initial_weights_are_an_error(
    with_file: Callable[..., Trial], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "kdr.config.distill.KdrConfig.needs", lambda _: frozenset({"teacher_logits"})
    )
    shared = SharedParts(storage)
    error = (
        r"^trial\.teacher\.weights: a method that learns from class logits .* left 2 of its keys"
        r" unfilled, such as head\."
    )
    with pytest.raises(WeightsError, match=error):
        shared.teacher(with_file(None), CPU)
    named = with_file(shared.splits(with_file(None).config.data).categories)
    assert shared.teacher(named, CPU).unloaded_head == frozenset()


@pytest.mark.slow
def test_a_student_learns_from_such_a_file_and_inherits_the_loaded_part_of_its_head(
    with_file: Callable[..., Trial], run: Callable[..., list[EpochMetrics]]
) -> None:
    changes = {
        "training.epochs": 1,
        "student.inherit": True,
        "student.p6_from": "C5",
        "student.backbone": "resnet18",
    }
    (metrics,) = run(with_file(None, changes))
    assert metrics.extras["inherited.neck"] == 1.0
    assert metrics.extras["inherited.head"] == pytest.approx(18 / 20)
    of_kdr = [value for name, value in metrics.losses.items() if name.startswith("kdr")]
    assert of_kdr
    assert all(value > 0 for value in of_kdr)
