"""Every arm of an ablation is tried before launch: what cannot run, or cannot be compared, is
refused with its way out."""

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


def test_what_can_run_passes() -> None:
    check_design(
        study_with({"review": REVIEW, "width": NARROW, "align": IDENTITY}, contrast="review=off")
    )
    check_design(study_from(CONTENT, folder=Path("/")))


@pytest.mark.parametrize("design", ["leave_one_out", "factorial"])
def test_a_problem_of_a_level_is_told_once_at_its_path_with_rule_and_value(design: str) -> None:
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


def test_a_problem_of_the_baseline_is_told_as_its_own() -> None:
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
            "one, or switch distill.kdr off"
        ),
    )
    found = problems_of(study_with({"width": NARROW}, baseline={"distill.kdr.align": "identity"}))
    assert found == (
        (
            "ablation.factors.width.narrow: must give a trial, got trial.distill.kdr.align: "
            "identity needs equal FPN channels of student and teacher, got 64 and 256. Use "
            "conv1x1"
        ),
    )


def test_a_cell_that_cannot_run_is_refused_once_or_left_out() -> None:
    factors = {"width": NARROW, "align": IDENTITY, "review": REVIEW}
    [found] = problems_of(study_with(factors, design="factorial"))
    assert (
        found == "ablation: the arm 'width=narrow, align=identity' must be a trial, got "
        "trial.distill.kdr.align: identity needs equal FPN channels of student and teacher, "
        "got 64 and 256. Use conv1x1. It can be left out: {width: narrow, align: identity}"
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
def test_two_factors_that_change_one_setting_to_two_values_are_no_arm(
    attention: dict[str, Any],
) -> None:
    factors = {"review": REVIEW, "attention": {"spatial": attention}}
    found = problems_of(study_with(factors, design="factorial"))
    assert (
        "ablation: the arm 'review=off, attention=spatial' must be a trial, got "
        "trial.distill.kdr.attention: must be changed by one factor, got review=off and "
        "attention=spatial. It can be left out: {review: off, attention: spatial}" in found
    )
    check_design(study_with(factors))


def test_two_factors_may_change_one_setting_to_one_value() -> None:
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
        f"ablation.{place}: must change the baseline, got settings that it has already, or that "
        "have no effect"
    )


def test_a_level_that_matters_only_beside_another_is_taken_in_a_factorial() -> None:
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
        ({"training.epochs": 24}, "trial.training.epochs of 'baseline', 12, got 24"),
        ({"data.num_train": 256}, "trial.data.num_train of 'baseline', 512, got 256"),
        ({"data.num_val": 8}, "trial.data.num_val of 'baseline', 128, got 8"),
        ({"data.search_split": 8}, "trial.data.search_split of 'baseline', 0.0, got 8.0"),
    ],
)
def test_arms_that_cannot_be_compared_are_refused(changes: dict[str, Any], problem: str) -> None:
    [found] = problems_of(study_with({"f": {"l": changes}}))
    assert found.startswith(f"ablation: the arm 'f=l' must have {problem}. Arms with other budgets")


@pytest.mark.parametrize(
    "changes",
    [{"data.augment.flip": 0.0}, {"data.resize": {"square_px": 64}}, {"training.lr": 0.1}],
)
def test_arms_may_train_otherwise(changes: dict[str, Any]) -> None:
    check_design(study_with({"f": {"l": changes}}))


def test_batches_of_an_arm_must_be_shared_evenly_by_its_workers() -> None:
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
def test_what_others_are_compared_with_cannot_be_left_out(
    settings: dict[str, Any], arm: str
) -> None:
    [found] = problems_of(study_with({"review": REVIEW, "width": NARROW}, **settings))
    assert (
        found
        == f"ablation.leave_out: must keep the arm '{arm}', which others are compared with, got it "
        "left out"
    )


@pytest.mark.parametrize("contrast", ["reveiw=off", "baseline", "width=narrow"])
def test_the_contrast_is_an_arm_that_is_compared(contrast: str) -> None:
    study = study_with(
        {"review": REVIEW, "width": NARROW}, contrast=contrast, leave_out=[{"width": "narrow"}]
    )
    [found] = problems_of(study)
    assert (
        found == f"ablation.contrast: must be an arm that is compared, got '{contrast}'. Arms: "
        "review=off"
    )


def test_very_many_arms_are_refused_before_they_are_tried() -> None:
    factors = {f"f{index}": {"l": {"training.lr": index + 1}} for index in range(40)}
    [found] = problems_of(study_with(factors, design="factorial"))
    assert found.startswith(
        "ablation.factors: a factorial design has at most 1000 arms, got 1099511627776. Use "
        "one_at_a_time"
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
