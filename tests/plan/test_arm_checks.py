"""Checks of an ablation's arms before launch: invalid and incomparable arms are refused."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.errors import ConfigError
from kdr.plan.arm_checks import check_design

CONTENT: dict[str, Any] = {
    "study": "parts",
    "trial": {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "student": {"backbone": "mobilenet_v3_small"},
        "distill": {"kdr": {}},
    },
}
REVIEW = {"off": {"distill.kdr.review_links": [], "distill.kdr.attention": "none"}}
NARROW = {"narrow": {"student.fpn_channels": 64}}
IDENTITY = {"identity": {"distill.kdr.align": "identity"}}


def study_with(
    factors: dict[str, Any], *, resources: dict[str, Any] | None = None, **ablation: Any
) -> Study:
    content = {
        **CONTENT,
        "ablation": {"factors": factors, "seeds": [1, 2], **ablation},
        "resources": resources or {},
    }
    return study_from(content, folder=Path("/"))


def problems_of(study: Study) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check_design(study)
    return caught.value.problems


def test_a_valid_ablation_passes() -> None:
    check_design(
        study_with({"review": REVIEW, "width": NARROW, "align": IDENTITY}, contrast="review=off")
    )
    check_design(study_from(CONTENT, folder=Path("/")))


@pytest.mark.parametrize("design", ["leave_one_out", "factorial"])
def test_a_problem_of_a_level_is_reported_once_with_its_path(design: str) -> None:
    factors = {
        "review": {"off": {"distill.kdr.reveiw_links": []}},
        "weight": {"low": {"distill.kdr.weight": -1}, "high": {"distill.kdr.weight": 10}},
    }
    found = problems_of(study_with(factors, design=design))
    weight = (
        "ablation.factors.weight.low.distill.kdr.weight: must be greater than or equal to 0, got -1"
    )
    assert len(found) == 2
    assert weight in found
    [unknown] = [problem for problem in found if "reveiw" in problem]
    assert unknown.startswith(
        "ablation.factors.review.off.distill.kdr.reveiw_links: no such setting. Did you mean "
        "'review_links'?"
    )


def test_a_problem_of_the_baseline_is_reported_with_its_path() -> None:
    found = problems_of(
        study_with(
            {"review": REVIEW, "width": NARROW},
            baseline={"distill.kdr.weight": "x"},
            design="factorial",
        )
    )
    assert found == ("ablation.baseline.distill.kdr.weight: must be a number, got 'x'",)


def test_a_level_that_breaks_another_setting_is_named() -> None:
    found = problems_of(study_with({"teacher": {"none": {"teacher": None}}}))
    assert found == (
        (
            "ablation.factors.teacher.none.teacher: distill.kdr needs a teacher, got none. Add "
            "one, or switch off distill.kdr"
        ),
    )
    found = problems_of(study_with({"width": NARROW}, baseline={"distill.kdr.align": "identity"}))
    assert found == (
        (
            "ablation.factors.width.narrow: must make a valid trial, got "
            "trial.distill.kdr.align: identity needs equal FPN channels of student and teacher, "
            "got 64 and 256. Use conv1x1"
        ),
    )


def test_an_invalid_cell_is_refused_once_and_can_be_left_out() -> None:
    factors = {"width": NARROW, "align": IDENTITY, "review": REVIEW}
    [found] = problems_of(study_with(factors, design="factorial"))
    assert (
        found == "ablation: the arm 'width=narrow, align=identity' must be a valid trial, got "
        "trial.distill.kdr.align: identity needs equal FPN channels of student and teacher, "
        "got 64 and 256. Use conv1x1. To skip it, add to ablation.leave_out: {width: narrow, "
        "align: identity}"
    )
    check_design(
        study_with(
            factors, design="factorial", leave_out=[{"width": "narrow", "align": "identity"}]
        )
    )


@pytest.mark.parametrize(
    "attention",
    [{"distill.kdr.attention": "spatial"}, {"distill.kdr": {"attention": "spatial"}}],
    ids=["one setting", "its group"],
)
def test_two_factors_must_not_set_one_setting_to_two_values(
    attention: dict[str, Any],
) -> None:
    factors = {"review": REVIEW, "attention": {"spatial": attention}}
    found = problems_of(study_with(factors, design="factorial"))
    assert (
        "ablation: the arm 'review=off, attention=spatial' must be a valid trial, got "
        "trial.distill.kdr.attention: must be changed by one factor only, got review=off and "
        "attention=spatial. To skip it, add to ablation.leave_out: {review: off, attention: "
        "spatial}" in found
    )
    check_design(study_with(factors))


def test_two_factors_may_set_one_setting_to_the_same_value() -> None:
    check_design(
        study_with(
            {"review": REVIEW, "attention": {"off": {"distill.kdr.attention": "none"}}},
            design="add_one_in",
        )
    )


@pytest.mark.parametrize(
    ("factors", "settings", "place"),
    [
        ({"weight": {"same": {"distill.kdr.weight": 3}}}, {}, "factors.weight.same"),
        (
            {"weight": {"five": {"distill.kdr.weight": 5}}},
            {"baseline": {"distill.kdr.weight": 5.0}},
            "factors.weight.five",
        ),
        (
            {"attention": {"off": {"distill.kdr.attention": "none"}}},
            {"baseline": {"distill.kdr.review_links": []}},
            "factors.attention.off",
        ),
        ({}, {"design": "arms", "arms": {"same": {"distill.kdr.weight": 3.0}}}, "arms.same"),
    ],
    ids=["value of the trial", "value of the baseline", "without effect", "listed arm"],
)
def test_a_level_that_changes_nothing_is_refused(
    factors: dict[str, Any], settings: dict[str, Any], place: str
) -> None:
    [found] = problems_of(study_with(factors, **settings))
    assert found.startswith(
        f"ablation.{place}: must change the baseline, got settings that it already has, or that "
        "have no effect"
    )


def test_a_level_that_matters_only_beside_another_is_valid_in_a_factorial() -> None:
    factors = {
        "masks": {"boxes": {"distill.kdr.masks": "boxes"}},
        "values": {"binary": {"distill.kdr.mask_values": "binary"}},
    }
    baseline = {"distill.kdr.masks": "none"}
    check_design(study_with(factors, baseline=baseline, design="factorial"))
    [found] = problems_of(study_with(factors, baseline=baseline))
    assert found.startswith("ablation.factors.values.binary: must change the baseline")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"training.epochs": 24}, "trial.training.epochs as 'baseline', 12, got 24"),
        ({"data.num_train": 256}, "trial.data.num_train as 'baseline', 512, got 256"),
        ({"data.num_val": 8}, "trial.data.num_val as 'baseline', 128, got 8"),
        ({"data.search_split": 8}, "trial.data.search_split as 'baseline', 0.0, got 8.0"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(changes: dict[str, Any], problem: str) -> None:
    [found] = problems_of(study_with({"f": {"l": changes}}))
    assert found.startswith(f"ablation: the arm 'f=l' must have the same {problem}. Arms with ")


@pytest.mark.parametrize(
    "changes",
    [{"data.augment.flip": 0.0}, {"data.resize": {"square_px": 64}}, {"training.lr": 0.1}],
)
def test_arms_may_train_differently(changes: dict[str, Any]) -> None:
    check_design(study_with({"f": {"l": changes}}))


def test_workers_must_share_the_batches_of_every_arm_evenly() -> None:
    [found] = problems_of(
        study_with({"batch": {"odd": {"training.batch_size": 5}}}, resources={"workers": 2})
    )
    assert found.startswith(
        "ablation.factors.batch.odd.training.batch_size: must be a multiple of resources.workers, "
        "2, which"
    )


@pytest.mark.parametrize(
    ("settings", "arm"),
    [
        ({"leave_out": [{"review": "baseline", "width": "baseline"}]}, "baseline"),
        ({"design": "add_one_in", "leave_out": [{"review": "off", "width": "narrow"}]}, "nothing"),
    ],
)
def test_the_reference_and_the_baseline_cannot_be_left_out(
    settings: dict[str, Any], arm: str
) -> None:
    [found] = problems_of(study_with({"review": REVIEW, "width": NARROW}, **settings))
    assert found == f"ablation.leave_out: must keep the arm '{arm}', which others are compared with"


@pytest.mark.parametrize("contrast", ["reveiw=off", "baseline", "width=narrow"])
def test_the_contrast_is_an_arm_other_than_the_reference(contrast: str) -> None:
    study = study_with(
        {"review": REVIEW, "width": NARROW}, contrast=contrast, leave_out=[{"width": "narrow"}]
    )
    [found] = problems_of(study)
    assert (
        found == f"ablation.contrast: must be an arm other than the reference, got '{contrast}'. "
        "Arms: review=off"
    )


def test_very_many_arms_are_refused_before_they_are_tried() -> None:
    factors = {f"f{index}": {"l": {"training.lr": index + 1}} for index in range(40)}
    [found] = problems_of(study_with(factors, design="factorial"))
    assert found.startswith(
        "ablation.factors: must make at most 1000 arms in a factorial design, got 1099511627776. "
        "Use one_at_a_time"
    )


def test_overrides_reach_into_factors() -> None:
    study = study_from(
        changed(
            {
                **CONTENT,
                "ablation": {
                    "factors": {"weight": {"low": {"distill.kdr.weight": 1}}},
                    "seeds": [1, 2],
                },
            },
            {"ablation.factors.weight.low.distill.kdr.weight": -1},
        ),
        folder=Path("/"),
    )
    assert problems_of(study) == (
        (
            "ablation.factors.weight.low.distill.kdr.weight: must be greater than or equal to 0, "
            "got -1"
        ),
    )
