"""The plan of a study before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.config.trial import Trial, TrialConfig
from kdr.errors import ConfigError
from kdr.plan.expand import ParameterRow, expand_study
from kdr.plan.keys import make_trial

CONTENT: dict[str, Any] = {
    "study": "s",
    "trial": {
        "data": {"dataset": "shapes", "num_train": 100, "search_split": 0.2},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "student": {"backbone": "mobilenet_v3_small"},
        "distill": {"kdr": {"weight": 3}},
    },
}
CHOICE = {"distill.kdr.attention": {"choice": ["none", "both"]}}


def study_with(changes: dict[str, Any]) -> Study:
    return study_from(changed(CONTENT, changes), folder=Path("/"))


def search(parameters: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"search": {"trials": 8, "parameters": parameters, **settings}}


def make(config: TrialConfig) -> Trial:
    return make_trial(config, data_id="data", weights_id=str)


def keys_of(study: Study, *points: dict[str, Any]) -> set[str]:
    return {make(study.trial_with(point)).key for point in points}


def test_a_study_without_a_search_is_one_trial_and_its_teacher() -> None:
    study = study_with({})
    plan = expand_study(study, make_trial=make)
    assert (plan.num_trials, plan.num_certain, plan.num_known, plan.num_cells) == (1, 1, 0, None)
    assert plan.teacher == study.base.teacher_trial()
    assert plan.teacher_known is False
    assert plan.warnings == ()


def test_known_trials_and_teachers_are_counted() -> None:
    study = study_with({})
    teacher = study.base.teacher_trial()
    assert teacher is not None
    plan = expand_study(
        study, make_trial=make, known=keys_of(study, {}) | {make(teacher).key, "another"}
    )
    assert (plan.num_known, plan.teacher_known) == (1, True)


def test_without_the_data_nothing_is_said_about_known_trials() -> None:
    plan = expand_study(study_with({}))
    assert (plan.num_known, plan.teacher_known, plan.num_trials) == (None, None, 1)


def test_a_grid_is_counted_cell_by_cell() -> None:
    study = study_with(
        {"search": {"sampler": "grid", "parameters": CHOICE | {"seed": {"int": [0, 2]}}}}
    )
    known = keys_of(study, {"seed": 1, "distill.kdr.attention": "none"}, {"seed": 9})
    plan = expand_study(study, make_trial=make, known=known)
    assert (plan.num_trials, plan.num_cells, plan.num_certain, plan.num_known) == (6, 6, 6, 1)


def test_only_the_enqueued_trials_of_a_search_are_certain() -> None:
    study = study_with(
        search(
            CHOICE | {"distill.kdr.weight": {"float": [1, 9]}}, enqueue=[{"distill.kdr.weight": 5}]
        )
    )
    plan = expand_study(study, make_trial=make, known=keys_of(study, {"distill.kdr.weight": 5.0}))
    assert (plan.num_trials, plan.num_cells, plan.num_certain, plan.num_known) == (8, None, 1, 1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"trials": 8}, 2), ({"trials": 1}, 1), ({"trials": None, "hours": 1}, 2)],
)
def test_a_search_never_has_more_trials_than_its_space_has_points(
    settings: dict[str, Any], expected: int
) -> None:
    assert expand_study(study_with(search(CHOICE, **settings))).num_trials == expected


def test_a_budget_of_hours_leaves_the_number_of_trials_open() -> None:
    study = study_with(
        {"search": {"hours": 2, "parameters": {"distill.kdr.weight": {"float": [1, 9]}}}}
    )
    assert expand_study(study).num_trials is None


def test_parameters_have_a_range_and_a_condition() -> None:
    parameters = {
        "distill.kdr.weight": {"float": [0.1, 50], "log": True, "points": 3},
        "distill.kdr.pyramid_scales": {"subset": ["full", 4], "at_least": 1},
        "distill.kdr.review_links": {"subset": ["P4->P3"]},
        "training.clip_norm": {"choice": [None, 35]},
        "distill.kdr.attention": {
            "choice": ["none", "both"],
            "when": {
                "distill.kdr.review_links": "not empty",
                "distill.kdr.fusion": ["gated", "residual"],
            },
        },
    }
    assert expand_study(study_with(search(parameters))).parameters == (
        ParameterRow("distill.kdr.weight", "float log", "0.1 to 50, 3 points", ""),
        ParameterRow("distill.kdr.pyramid_scales", "subset", "full, 4, at least 1", ""),
        ParameterRow("distill.kdr.review_links", "subset", "P4->P3", ""),
        ParameterRow("training.clip_norm", "choice", "null, 35", ""),
        ParameterRow(
            "distill.kdr.attention",
            "choice",
            "none, both",
            "distill.kdr.review_links not empty and distill.kdr.fusion is gated or residual",
        ),
    )


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            search(CHOICE) | {"trial.data.search_split": 0},
            "trial.data.search_split: is 0, so the search selects on the validation",
        ),
        (
            search({"seed": {"int": [0, 99]}}),
            "search.parameters.seed: a search over seeds selects by luck",
        ),
        (
            search({"seed": {"int": [0, 9]}, **CHOICE}, trials=99),
            "search.trials: 99 is more than the 20 points of the space",
        ),
        (
            search(CHOICE, trials=2, stop_early={"asha": {"grace_epochs": 12}}),
            "search.stop_early.asha.grace_epochs: 12 is not below the 12 epochs of a trial",
        ),
        (
            search(
                {"training.epochs": {"int": [2, 4]}},
                trials=2,
                stop_early={"median": {"grace_epochs": 4}},
            ),
            "search.stop_early.median.grace_epochs: 4 is not below the 4 epochs of a trial",
        ),
        (
            {"trial.training.batch_size": 81},
            "trial.training.batch_size: 81 is more than the 80 training images",
        ),
        (
            {"trial.student.backbone": "resnet34"},
            "trial.teacher.backbone: resnet18 is smaller than the student's resnet34",
        ),
    ],
)
def test_a_suspicious_study_gets_a_warning(changes: dict[str, Any], warning: str) -> None:
    warnings = expand_study(study_with(changes)).warnings
    assert any(found.startswith(warning) for found in warnings)


@pytest.mark.parametrize(
    "changes",
    [
        search(CHOICE, trials=2, stop_early={"asha": {"grace_epochs": 11}}),
        search({"data.search_split": {"float": [0.1, 0.5]}}) | {"trial.data.search_split": 0},
        {"trial.training.batch_size": 80},
        {"trial.student.backbone": "resnet18"},
        {"trial.student.backbone": "resnet34", "trial.distill": {}},
    ],
)
def test_a_sound_study_gets_no_warning(changes: dict[str, Any]) -> None:
    assert expand_study(study_with(changes)).warnings == ()


def ablation(**settings: Any) -> dict[str, Any]:
    factors = {
        "weight": {"low": {"distill.kdr.weight": 1}},
        "attention": {"off": {"distill.kdr.attention": "none"}},
    }
    return {
        "trial.data.search_split": 0,
        "ablation": {"factors": factors, "seeds": [5, 6], **settings},
    }


def test_the_trials_of_an_ablation_are_arms_times_seeds() -> None:
    study = study_with(ablation())
    known = keys_of(
        study, {"seed": 5}, {"seed": 5, "distill.kdr.weight": 1}, {"seed": 6}, {"seed": 7}
    )
    plan = expand_study(study, make_trial=make, known=known)
    assert (plan.num_trials, plan.num_certain, plan.num_known, plan.warnings) == (6, 6, 3, ())
    assert [(arm.name, arm.num_known, arm.is_reference) for arm in plan.arms] == [
        ("baseline", 2, True),
        ("weight=low", 1, False),
        ("attention=off", 0, False),
    ]
    assert expand_study(study).arms[0].num_known is None


def test_arms_with_the_same_trials_are_counted_once_and_named() -> None:
    factors = {
        "review": {"off": {"distill.kdr.review_links": []}},
        "attention": {
            "spatial": {"distill.kdr.attention": "spatial"},
            "off": {"distill.kdr.attention": "none"},
        },
    }
    plan = expand_study(study_with(ablation(factors=factors, design="factorial")), make_trial=make)
    assert {arm.name: arm.same_as for arm in plan.arms if arm.same_as} == {
        "review=off, attention=spatial": "review=off",
        "review=off, attention=off": "review=off",
    }
    assert (len(plan.arms), plan.num_trials, plan.num_certain) == (6, 4 * 2, 4 * 2)


def test_left_out_arms_are_named() -> None:
    cell = {"weight": "low", "attention": "off"}
    plan = expand_study(study_with(ablation(design="factorial", leave_out=[cell])))
    assert (plan.left_out, len(plan.arms), plan.warnings) == (
        ("weight=low, attention=off",),
        3,
        (),
    )


def test_the_plan_of_an_ablation_shows_its_baseline_and_the_teachers_of_all_arms() -> None:
    study = study_with(
        ablation(baseline={"distill": {}}, factors={"kdr": {"on": {"distill": {"kdr": {}}}}})
    )
    plan = expand_study(study, make_trial=make)
    assert plan.base.distill.methods() == {}
    assert plan.teacher == study.base.teacher_trial()
    factors = {"teacher": {"long": {"teacher.training.epochs": 9}}}
    study = study_with(ablation(factors=factors))
    teachers = [
        study.trial_with(changes).teacher_trial()
        for changes in ({}, {"teacher.training.epochs": 9})
    ]
    short, long = (make(teacher).key for teacher in teachers if teacher is not None)
    assert expand_study(study, make_trial=make, known={short}).teacher_known is False
    assert expand_study(study, make_trial=make, known={short, long}).teacher_known is True


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            ablation(seeds=[1]),
            "ablation.seeds: one seed gives no confidence intervals. Use at least 2",
        ),
        (
            ablation() | {"trial.data.search_split": 10},
            "trial.data.search_split: is 10, so the arms are compared on held-out training images",
        ),
        (
            ablation(leave_out=[{"weight": "low", "attention": "off"}]),
            "ablation.leave_out.0: matches no arm of the design leave_one_out",
        ),
    ],
)
def test_a_suspicious_ablation_gets_a_warning(changes: dict[str, Any], warning: str) -> None:
    [found] = expand_study(study_with(changes)).warnings
    assert found.startswith(warning)


def test_an_ablation_with_an_invalid_arm_has_no_plan() -> None:
    with pytest.raises(
        ConfigError,
        match=r"ablation\.factors\.weight\.low\.distill\.kdr\.weight: must be .*, got -1",
    ):
        expand_study(study_with(ablation(factors={"weight": {"low": {"distill.kdr.weight": -1}}})))


def test_a_search_with_an_invalid_space_has_no_plan() -> None:
    with pytest.raises(
        ConfigError, match=r"search\.parameters\.training\.lr: must be greater than 0, got 0"
    ):
        expand_study(study_with(search({"training.lr": {"float": [0, 1]}})))


def test_keys_are_made_for_certain_trials_only() -> None:
    asked: list[TrialConfig] = []

    def counting(config: TrialConfig) -> Trial:
        asked.append(config)
        return make(config)

    maker: Callable[[TrialConfig], Trial] = counting
    expand_study(study_with(search(CHOICE, trials=2)), make_trial=maker)
    assert len(asked) == 1  # the teacher's
