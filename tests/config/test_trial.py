"""One trial's settings: presets, canonical forms, and the teacher's own trial."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kdr.config.descriptions import descriptions_of
from kdr.config.detector import level_name, level_names, review_links
from kdr.config.distill import KdrConfig
from kdr.config.overrides import changed
from kdr.config.problems import validated
from kdr.config.settings import Settings
from kdr.config.study import Study
from kdr.config.trial import TrialConfig

TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes", "search_split": 0.25},
    "teacher": {
        "backbone": "resnet18",
        "fpn_channels": 64,
        "training": {"epochs": 2, "lr": 0.02},
        "seed": 3,
    },
    "distill": {"kdr": {}},
}
LINKS = review_links("retinanet")


def trial(changes: dict[str, Any] | None = None) -> TrialConfig:
    return validated(TrialConfig, changed(TRIAL, changes or {}))


def kdr_of(changes: dict[str, Any]) -> KdrConfig:
    kdr = trial({f"distill.kdr.{name}": value for name, value in changes.items()}).distill.kdr
    assert kdr is not None
    return kdr


def test_levels_and_links_are_named_by_stride() -> None:
    assert [level_name(stride) for stride in (4, 8, 16, 128, 7.8)] == [
        "P2",
        "P3",
        "P4",
        "P7",
        "P3",
    ]
    assert level_names("fcos") == ("P3", "P4", "P5", "P6", "P7")
    assert LINKS == ("P4->P3", "P5->P4", "P6->P5", "P7->P6")


def test_the_preset_kdr_has_the_defaults_of_the_method_page() -> None:
    kdr = kdr_of({})
    assert (kdr.weight, kdr.attention, kdr.fusion) == (3, "both", "residual")
    assert kdr.foreground_share == pytest.approx(2 / 3)
    assert (kdr.pyramid_scales, kdr.review_links, kdr.normalisation) == (
        ("full", 4, 2, 1),
        LINKS,
        "teacher_std",
    )


def test_the_preset_kdr_paper_uses_reviewkds_parts() -> None:
    kdr = kdr_of({"preset": "kdr-paper"})
    assert (kdr.gates, kdr.fusion, kdr.adapter_norm, kdr.init, kdr.padding) == (
        "sigmoid",
        "gated",
        "batch",
        "kaiming",
        "counted",
    )
    assert (kdr.normalisation, kdr.scales_below, kdr.weight) == ("none", "height", 3.0)


@pytest.mark.parametrize(
    ("detector", "weight"), [("retinanet", 3.0), ("fcos", 4.8), ("faster_rcnn", 1.5)]
)
def test_the_preset_kdr_paper_has_a_weight_for_each_detector(detector: str, weight: float) -> None:
    kdr = trial({"student.detector": detector, "distill.kdr.preset": "kdr-paper"}).distill.kdr
    assert kdr is not None
    assert kdr.weight == weight


@pytest.mark.parametrize("name", ["weight", "fusion", "normalisation"])
def test_the_users_settings_win_over_the_preset(name: str) -> None:
    # the other preset's default
    value = {"weight": 3.0, "fusion": "residual", "normalisation": "teacher_std"}[name]
    kdr = trial(
        {"student.detector": "fcos", "distill.kdr": {"preset": "kdr-paper", name: value}}
    ).distill.kdr
    assert getattr(kdr, name) == value


@given(st.permutations(LINKS), st.integers(0, 4))
def test_the_order_of_links_makes_no_difference(links: list[str], number: int) -> None:
    kdr = kdr_of({"review_links": links[:number]})
    assert kdr.review_links == tuple(link for link in LINKS if link in links[:number])


@given(st.lists(st.sampled_from(["full", 1, 2, 4, 8]), min_size=1))
def test_scales_are_a_set_sorted_largest_first(scales: list[str | int]) -> None:
    result = kdr_of({"pyramid_scales": scales}).pyramid_scales
    assert set(result) == set(scales)
    assert len(result) == len(set(scales))
    numbers = [scale for scale in result if scale != "full"]
    assert numbers == sorted(numbers, reverse=True)
    assert "full" not in result[1:]


@pytest.mark.parametrize(
    ("setting", "gone"),
    [
        ({}, set()),
        ({"review_links": []}, {"attention", "fusion", "gates", "upsample"}),
        ({"masks": "none"}, {"foreground_share", "mask_values"}),
        ({"calibrate": 0.5}, {"weight"}),
    ],
)
def test_the_canonical_form_leaves_out_settings_without_effect(
    setting: dict[str, Any], gone: set[str]
) -> None:
    # `calibrate` is in the canonical form only if it is set
    everything = set(KdrConfig.model_fields) - {"preset", "calibrate"}
    assert set(kdr_of(setting).canonical()) - {"calibrate"} == everything - gone


def test_a_preset_written_out_has_the_canonical_form_of_the_preset() -> None:
    paper = kdr_of({"preset": "kdr-paper"})
    written_out = paper.model_dump(mode="json", exclude={"preset"})
    assert kdr_of(written_out).canonical() == paper.canonical()


@pytest.mark.parametrize(
    "changes",
    [{}, {"distill.kdr.preset": "kdr-paper"}, {"student.detector": "fcos"}, {"distill": {}}],
)
def test_a_trial_survives_writing_and_reading(changes: dict[str, Any]) -> None:
    config = trial(changes)
    assert TrialConfig.model_validate_json(config.model_dump_json()) == config
    assert validated(TrialConfig, json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({}, True),
        ({"distill": {}}, False),
        ({"distill": {}, "student.inherit": True}, True),
        ({"distill.kdr": None}, False),
    ],
)
def test_a_teacher_is_needed_for_methods_and_for_inheriting(
    changes: dict[str, Any], needed: bool
) -> None:
    assert trial(changes).needs_teacher == needed
    assert (trial(changes).teacher_trial() is not None) == needed


def test_the_teachers_trial_is_plain_training_on_the_same_data() -> None:
    config = trial()
    teacher = config.teacher_trial()
    assert teacher is not None
    assert teacher.data == config.data
    assert (teacher.student.backbone, teacher.student.fpn_channels, teacher.seed) == (
        "resnet18",
        64,
        3,
    )
    assert (teacher.training.epochs, teacher.training.lr) == (2, 0.02)
    assert not teacher.needs_teacher
    assert teacher.distill.methods() == {}


def test_a_teacher_with_weights_has_no_trial() -> None:
    assert trial({"teacher": {"weights": "t.pt"}}).teacher_trial() is None


def test_a_trial_without_distillation_accepts_an_incomplete_teacher() -> None:
    assert trial({"distill": {}, "teacher": {}}).teacher is not None


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        trial().training.epochs = 3  # type: ignore[misc]


def groups_of_settings() -> list[type[Settings]]:
    """Returns every settings class of kdr."""
    assert Study.model_fields  # its module imports all of them
    found: list[type[Settings]] = [Settings]
    for group in found:
        found += group.__subclasses__()
    return [
        group for group in found if group.__module__.startswith("kdr.") and group is not Settings
    ]


@pytest.mark.parametrize("group", groups_of_settings(), ids=lambda group: group.__name__)
def test_every_setting_and_every_group_is_documented(group: type[Settings]) -> None:
    assert group.__name__.startswith("_") or group.__doc__
    assert group.model_fields.keys() == descriptions_of(group).keys()


def test_the_settings_need_neither_torch_nor_ray(tmp_path: Path, python_process: Any) -> None:
    code = (
        "import sys, kdr.config.study, kdr.plan.expand; sys.exit(any(name in sys.modules for name "
        "in ('torch', 'ray')))"
    )
    assert python_process(code).wait() == 0
