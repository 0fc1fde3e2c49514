"""Settings of weights from other libraries: the defaults they set, and what they refuse."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdr.config.detector import DetectorConfig
from kdr.config.problems import validated
from kdr.config.trial import TeacherConfig, TrialConfig
from kdr.errors import ConfigError

FILLED_IN = ("p6_from", "p7_relu", "bottleneck_stride", "channel_order", "pixel_mean", "pixel_std")
BGR_MEAN, BGR_STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)


def detector(**settings: Any) -> DetectorConfig:
    return validated(DetectorConfig, {"weights": "teacher.pth", **settings})


def filled_in(**settings: Any) -> dict[str, Any]:
    config = detector(**settings)
    return {name: getattr(config, name) for name in FILLED_IN if getattr(config, name) is not None}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"weights_layout": "mmdetection"}, {"p6_from": "C5", "p7_relu": False}),
        ({"weights_layout": "mmdetection", "detector": "fcos"}, {}),
        ({"weights_layout": "mmdetection", "detector": "faster_rcnn"}, {}),
        (
            {"weights_layout": "detectron2"},
            {
                "p6_from": "C5",
                "bottleneck_stride": "1x1",
                "channel_order": "BGR",
                "pixel_mean": BGR_MEAN,
                "pixel_std": (1, 1, 1),
            },
        ),
        (
            {"weights_layout": "detectron2", "detector": "fcos", "backbone": "resnet18"},
            {"channel_order": "BGR", "pixel_mean": BGR_MEAN, "pixel_std": (1, 1, 1)},
        ),
        (
            {
                "weights_layout": "detectron2",
                "detector": "faster_rcnn",
                "backbone": "resnext101_32x8d",
            },
            {"channel_order": "BGR", "pixel_mean": BGR_MEAN, "pixel_std": BGR_STD},
        ),
        (
            {
                "weights_layout": "detectron2",
                "channel_order": "RGB",
                "bottleneck_stride": "3x3",
                "p6_from": "P5",
            },
            {"channel_order": "RGB", "bottleneck_stride": "3x3", "p6_from": "P5"},
        ),
    ],
)
def test_a_layout_sets_the_defaults_of_its_library(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert filled_in(**settings) == expected


def test_filled_in_settings_do_not_count_as_set_and_survive_writing_and_reading() -> None:
    config = detector(weights_layout="detectron2")
    assert config.model_fields_set == {"weights", "weights_layout"}
    assert validated(DetectorConfig, config.model_dump(mode="json")) == config


def test_without_a_layout_nothing_is_filled_in() -> None:
    assert filled_in() == {}


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (
            {"weights": None, "weights_layout": "detectron2"},
            "weights_layout: needs a file in weights, got none. Name the file",
        ),
        (
            {"weights": "ResNet50_Weights.IMAGENET1K_V1", "weights_layout": "detectron2"},
            "weights_layout: needs a file in weights, got ResNet50_Weights.IMAGENET1K_V1.",
        ),
        (
            {"backbone": "mobilenet_v3_small", "weights_layout": "mmdetection"},
            (
                "weights_layout: mmdetection files need a resnet or resnext backbone, got "
                "mobilenet_v3_small. Leave it out"
            ),
        ),
        (
            {"backbone": "resnet18", "bottleneck_stride": "1x1"},
            (
                "bottleneck_stride: resnet18 has no bottlenecks of three convolutions, got 1x1. "
                "Leave it out"
            ),
        ),
        (
            {"channel_order": "RGB"},
            (
                "channel_order: needs weights_layout, the library that saved the weights, got RGB "
                "alone."
            ),
        ),
        (
            {"weights_layout": "mmdetection", "channel_order": "BGR", "pixel_mean": [1, 2, 3]},
            (
                "channel_order: BGR needs pixel_mean and pixel_std in BGR too, got only the order. "
                "Copy both"
            ),
        ),
        ({"pixel_std": [0, 1, 1]}, "pixel_std.0: must be greater than 0, got 0"),
        (
            {"detector": "faster_rcnn", "p7_relu": True},
            "p7_relu: faster_rcnn has no such setting, got True. Leave it out",
        ),
        (
            {"weights_layout": "mmdet"},
            "weights_layout: must be 'mmdetection' or 'detectron2', got 'mmdet'",
        ),
    ],
)
def test_contradictory_settings_are_refused(settings: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(error)):
        detector(**settings)


def test_the_examples_of_the_docs_are_valid_teachers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    examples = [
        yaml.safe_load(block)["teacher"]
        for block in re.findall(r"```yaml\n(.+?)```", text, re.DOTALL)
    ]
    assert [example["weights_layout"] for example in examples] == [
        "mmdetection",
        "mmdetection",
        "detectron2",
    ]
    documented = re.findall(r"weights_layout: (\w+) +# fills in (.+)", text)
    for example in examples:
        teacher = validated(TeacherConfig, example)
        for name in [
            name
            for layout, names in documented
            if layout == example["weights_layout"]
            for name in names.split(", ")
        ]:
            assert teacher.detector == "fcos" or getattr(teacher, name.split(":")[0]) is not None


def with_logits(monkeypatch: pytest.MonkeyPatch, **teacher: Any) -> TrialConfig:
    monkeypatch.setattr(
        "kdr.config.distill.KdrConfig.needs", lambda _: frozenset({"teacher_logits"})
    )
    content = {
        "data": {"dataset": "shapes"},
        "teacher": {"weights": "teacher.pth", **teacher},
        "distill": {"kdr": {}},
    }
    return validated(TrialConfig, content)


@pytest.mark.parametrize(
    ("layout", "kind"),
    [("detectron2", "retinanet"), ("detectron2", "fcos"), ("mmdetection", "fcos")],
)
def test_a_method_of_class_logits_needs_a_teacher_whose_class_layer_is_loaded(
    monkeypatch: pytest.MonkeyPatch, layout: str, kind: str
) -> None:
    error = (
        rf"distill\.kdr: needs the teacher's class logits, got {layout}'s {kind}, whose class"
        r" layer is not loaded\. Choose"
    )
    with pytest.raises(ConfigError, match=error):
        with_logits(monkeypatch, weights_layout=layout, detector=kind)
    assert (
        with_logits(monkeypatch, weights_layout="mmdetection", detector="retinanet").teacher
        is not None
    )
