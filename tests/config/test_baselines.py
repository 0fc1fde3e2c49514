"""The settings of the methods that KDR is compared with: their defaults for each detector, their
levels, what they refuse.
"""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from kdr.config.detector import level_names
from kdr.config.distill import DistillConfig
from kdr.config.overrides import changed
from kdr.config.problems import validated
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError

TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes"},
    "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
    "distill": {},
}
WITH_LEVELS = [
    name
    for name in DistillConfig.model_fields
    if name in ("fitnet", "defeat", "fgd", "mgd", "pkd", "cwd", "frs")
]


def resolved(
    method: str,
    changes: dict[str, Any] | None = None,
    *,
    student: str = "retinanet",
    others: Mapping[str, Any] | None = None,
) -> Any:
    """Returns a method's settings in a trial with this student."""
    changes = {"student.detector": student, f"distill.{method}": changes or {}, **(others or {})}
    return getattr(validated(TrialConfig, changed(TRIAL, changes)).distill, method)


@pytest.mark.parametrize(
    ("method", "student", "expected"),
    [
        ("fitnet", "retinanet", {"weight": 1.0, "align": "conv1x1"}),
        ("reviewkd", "retinanet", {"weight": 1.0}),
        ("reviewkd", "faster_rcnn", {"weight": 1.0}),
        (
            "defeat",
            "faster_rcnn",
            {"weight": 1.0, "foreground_weight": 4.0, "background_weight": 16.0},
        ),
        (
            "fgd",
            "retinanet",
            {"foreground_weight": 1e-3, "background_weight": 5e-4, "attention_weight": 5e-4},
        ),
        ("fgd", "retinanet", {"relation_weight": 5e-6, "temperature": 0.5, "weight": 1.0}),
        (
            "fgd",
            "fcos",
            {"foreground_weight": 1.6e-3, "background_weight": 8e-4, "attention_weight": 8e-4},
        ),
        ("fgd", "fcos", {"relation_weight": 8e-6, "temperature": 0.8}),
        (
            "fgd",
            "faster_rcnn",
            {"foreground_weight": 5e-5, "background_weight": 2.5e-5, "attention_weight": 5e-5},
        ),
        ("fgd", "faster_rcnn", {"relation_weight": 5e-7, "temperature": 0.5}),
        ("mgd", "retinanet", {"weight": 2e-5, "masked_share": 0.65}),
        ("mgd", "fcos", {"weight": 2e-5, "masked_share": 0.65}),
        ("mgd", "faster_rcnn", {"weight": 5e-7, "masked_share": 0.45}),
        ("pkd", "retinanet", {"weight": 10.0}),
        ("pkd", "fcos", {"weight": 10.0}),
        ("pkd", "faster_rcnn", {"weight": 6.0}),
        ("cwd", "faster_rcnn", {"weight": 10.0, "temperature": 1.0}),
        (
            "frs",
            "retinanet",
            {"weight": 1.0, "feature_weight": 0.005, "score_weight": 0.02, "ramp": "auto"},
        ),
    ],
)
def test_defaults_are_the_originals_for_the_students_detector(
    method: str, student: str, expected: dict[str, Any]
) -> None:
    settings = resolved(method, student=student)
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_users_settings_are_kept() -> None:
    settings = resolved(
        "fgd", {"foreground_weight": 0.1, "levels": ["P5", "P3"]}, student="faster_rcnn"
    )
    assert (settings.foreground_weight, settings.background_weight, settings.levels) == (
        0.1,
        2.5e-5,
        ("P3", "P5"),
    )


@pytest.mark.parametrize("student", ["retinanet", "faster_rcnn"])
@pytest.mark.parametrize("method", [name for name in WITH_LEVELS if name != "frs"])
def test_the_default_levels_are_those_of_the_original(method: str, student: str) -> None:
    names = level_names(student)
    finest_four = method == "pkd" or (method in ("fgd", "mgd") and student == "faster_rcnn")
    assert resolved(method, student=student).levels == (names[:4] if finest_four else names)


@pytest.mark.parametrize("method", WITH_LEVELS)
def test_the_order_of_levels_makes_no_difference(method: str) -> None:
    usual = resolved(method).canonical()
    assert resolved(method, {"levels": list(usual["levels"])[::-1]}).canonical() == usual
    assert resolved(method, {"levels": None}).canonical() == usual
    assert json.dumps(usual)


@pytest.mark.parametrize("method", WITH_LEVELS)
def test_an_unknown_level_is_refused(method: str) -> None:
    with pytest.raises(
        ConfigError,
        match=rf"distill\.{method}\.levels: must be levels of retinanet \(P3, .*, P7\), got P2, P8",
    ):
        resolved(method, {"levels": ["P2", "P3", "P8"]})
    with pytest.raises(ConfigError, match=rf"distill\.{method}\.levels: needs at least 1 value"):
        resolved(method, {"levels": []})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (
            "pkd",
            {},
            (
                r"distill\.pkd: needs equal FPN channels .* got 64 and 256\. Set"
                r" student\.fpn_channels .* such as cwd"
            ),
        ),
        (
            "fitnet",
            {"align": "identity"},
            r"distill\.fitnet\.align: identity needs equal FPN channels .* 256\. Use conv1x1",
        ),
    ],
)
def test_unequal_channels_are_refused_without_an_adapter(
    method: str, settings: dict[str, Any], message: str
) -> None:
    assert resolved(method, settings)
    with pytest.raises(ConfigError, match=message):
        resolved(method, settings, others={"student.fpn_channels": 64})


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (
            "faster_rcnn",
            "retinanet",
            (
                r"distill\.frs: needs a student with class logits in every cell .* got"
                r" faster_rcnn\. Choose"
            ),
        ),
        (
            "retinanet",
            "faster_rcnn",
            (
                r"distill\.frs: needs a teacher with class logits in every cell .* got"
                r" faster_rcnn\. Choose"
            ),
        ),
        (
            "fcos",
            "retinanet",
            r"distill\.frs: needs the same number .* got 1 \(fcos\) and 9 \(retinanet\)\. Use",
        ),
    ],
)
def test_a_method_of_class_scores_needs_equal_kinds_of_class_scores(
    student: str, teacher: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved("frs", student=student, others={"teacher.detector": teacher})
    assert resolved("frs", student="fcos", others={"teacher.detector": "fcos"})
