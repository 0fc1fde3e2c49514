"""Checks of a search space before launch: every mistake is reported."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.distill import DistillConfig
from kdr.config.study import Study, study_from
from kdr.errors import ConfigError
from kdr.plan.points import extremes, space_of
from kdr.plan.space import check_space, points_to_try

LINKS = {"subset": ["P4->P3", "P5->P4"]}


def study_with(
    parameters: dict[str, Any], trial: dict[str, Any] | None = None, **search: Any
) -> Study:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "distill": {"kdr": {}},
        **(trial or {}),
    }
    return study_from(
        {
            "study": "s",
            "trial": trial,
            "search": {"trials": 8, "parameters": parameters, **search},
        },
        folder=Path("/"),
    )


def problems_of(study: Study) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        check_space(study)
    return caught.value.problems


def test_a_valid_space_has_no_problems() -> None:
    check_space(
        study_with(
            {
                "distill.kdr.weight": {"float": [0.1, 50], "log": True},
                "distill.kdr.foreground_share": {"float": [0.05, 0.95]},
                "distill.kdr.pyramid_scales": {"subset": ["full", 4, 2, 1], "at_least": 1},
                "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4", "P6->P5", "P7->P6"]},
                "distill.kdr.attention": {
                    "choice": ["none", "both"],
                    "when": {"distill.kdr.review_links": "not empty"},
                },
            },
            enqueue=[{}, {"distill.kdr.weight": 5}],
        )
    )


@pytest.mark.parametrize("method", DistillConfig.model_fields)
def test_a_search_reaches_into_every_method(method: str) -> None:
    parameters = {
        f"distill.{method}.weight": {"float": [0.1, 50], "log": True},
        f"distill.{method}.ramp": {"int": [0, 9]},
    }
    check_space(study_with(parameters, {"distill": {}}))
    check_space(study_with(parameters, {"distill": {method: {}}}))
    check_space(study_with({f"distill.{method}.calibrate": {"float": [0.1, 2], "log": True}}))
    (problem,) = problems_of(study_with({f"distill.{method}.wieght": {"float": [0.1, 50]}}))
    assert problem.startswith(
        f"search.parameters.distill.{method}.wieght: no such setting. Did you mean 'weight'?"
    )


def test_a_study_without_a_search_has_no_problems() -> None:
    check_space(
        study_from({"study": "s", "trial": {"data": {"dataset": "shapes"}}}, folder=Path("/"))
    )


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            {"distill.kdr.wieght": {"float": [1, 2]}},
            (
                "search.parameters.distill.kdr.wieght: no such setting. Did you mean 'weight'? "
                "Settings: "
            ),
        ),
        (
            {"distil.kdr.weight": {"float": [1, 2]}},
            "search.parameters.distil: no such setting. Did you mean 'distill'?",
        ),
        (
            {"distill.kdr.weight": {"float": [-1, 2]}},
            "search.parameters.distill.kdr.weight: must be greater than or equal to 0, got -1",
        ),
        (
            {"training.epochs": {"float": [1.5, 2]}},
            "search.parameters.training.epochs: must be a whole number, got 1.5",
        ),
        (
            {"training.epochs": {"int": [0, 2]}},
            "search.parameters.training.epochs: must be greater than or equal to 1, got 0",
        ),
        (
            {"student.backbone": {"choice": ["resnet18", "resnet19"]}},
            (
                "search.parameters.student.backbone: must be 'resnet18', 'resnet34', 'resnet50', "
                "'resnet101', 'resnet152', 'resnext"
            ),
        ),
        (
            {"distill.kdr.pyramid_scales": {"subset": ["full", 4]}},
            "search.parameters.distill.kdr.pyramid_scales: ",
        ),
        (
            {"distill.kdr.review_links": {"subset": ["P4->P3", "P9->P8"]}},
            (
                "search.parameters.distill.kdr.review_links: must be links of retinanet (P4->P3, "
                "P5->P4, P6->P5, P7->P6), got P9->P8"
            ),
        ),
        (
            {"training.schedule": {"choice": ["step", "cosine"]}},
            (
                "search.parameters: every point must be a valid trial, got "
                "training.schedule='cosine' with trial.training.step_epochs: must be used with "
                "schedule: step only, got cosine"
            ),
        ),
        (
            {"distill.kdr": {"choice": [None, {}]}, "distill.kdr.weight": {"float": [1, 2]}},
            (
                "search.parameters.distill.kdr.weight: must not be inside another searched "
                "parameter, got one inside distill.kdr. Search one"
            ),
        ),
    ],
)
def test_an_invalid_point_is_reported_with_its_parameter(
    parameters: dict[str, Any], problem: str
) -> None:
    [found] = problems_of(
        study_with(parameters, trial={"training": {"epochs": 3, "step_epochs": [2]}})
    )
    assert found.startswith(problem)


def test_a_problem_in_a_single_corner_is_found() -> None:
    parameters = {
        "data.num_train": {"int": [100, 1000]},
        "data.search_split": {"int": [50, 500]},
        **{f"data.augment.{name}": {"float": [0, 1]} for name in ("flip", "colour_jitter")},
    }
    [found] = problems_of(study_with(parameters))
    assert (
        found == "search.parameters.data.search_split: must leave training images, got 500 of "
        "num_train=100"
    )


def test_a_problem_of_two_extremes_is_found_among_many_corners() -> None:
    many = {
        f"training.{name}": {"float": [0.1, 0.9]}
        for name in ("lr", "momentum", "step_factor", "warmup_factor", "clip_norm")
    }
    more = {f"data.augment.{name}": {"float": [0, 1]} for name in ("flip", "colour_jitter")}
    space = (
        many
        | more
        | {
            "data.num_train": {"int": [100, 1000]},
            "data.search_split": {"int": [50, 500]},
        }
    )
    [found] = problems_of(study_with(space))
    assert found.startswith("search.parameters.data.search_split: must leave training images, got ")


def test_with_many_corners_every_extreme_is_tried_inside_the_space() -> None:
    many = {
        f"training.{name}": {"float": [0.1, 0.9]}
        for name in ("lr", "momentum", "step_factor", "warmup_factor", "clip_norm")
    }
    rare = {
        "choice": ["none", "both"],
        "when": {"distill.kdr.review_links": "empty", "distill.kdr.init": "dirac"},
    }
    rest = {
        "distill.kdr.review_links": LINKS,
        "distill.kdr.init": {"choice": ["dirac", "kaiming"]},
        "distill.kdr.masks": rare,
    }
    study = study_with(
        many | rest | {"distill.kdr.masks": {"choice": ["none", "boxes"], "when": rare["when"]}}
    )
    space = space_of(study)
    points = list(points_to_try(space))
    for path, parameter in space.parameters.items():
        tried = [point[path] for point in points if path in point]
        assert all(value in tried for value in extremes(parameter))
        assert all(space.draws(path, point) == (path in point) for point in points)


@pytest.mark.parametrize(
    ("when", "problem"),
    [
        (
            {"distill.kdr.review_link": "empty"},
            (
                "must be a searched parameter or a setting of the trial, got neither. "
                "Did you mean 'distill.kdr.review_links'?"
            ),
        ),
        (
            {"distill.kdr.review_links": []},
            "must be a value, a list of values, `empty` or `not empty`, got []",
        ),
        (
            {"distill.kdr.masks": {"is": "boxes"}},
            "must be a value, a list of values, `empty` or `not empty`, got {'is': 'boxes'}",
        ),
        (
            {"distill.kdr.review_links": "P4->P3"},
            "must be `empty` or `not empty` for a subset, got 'P4->P3'",
        ),
        (
            {"distill.kdr.weight": 2},
            "must not be a condition on a float range, got 2. Use choice or int",
        ),
        (
            {"distill.kdr.fusion": ["gated", "mixed"]},
            "must be possible values, got ['mixed']. Values: ['gated', 'residual']",
        ),
        ({"training.epochs": 9}, "must be possible values, got [9]. Values: [2, 4]"),
        (
            {"distill.kdr.fusion": "empty"},
            "must be possible values, got ['empty']. Values: ['gated', 'residual']",
        ),
    ],
)
def test_an_impossible_condition_is_reported(when: dict[str, Any], problem: str) -> None:
    parameters = {
        "distill.kdr.weight": {"float": [1, 2]},
        "distill.kdr.review_links": LINKS,
        "distill.kdr.fusion": {"choice": ["gated", "residual"]},
        "training.epochs": {"int": [2, 4]},
        "distill.kdr.attention": {"choice": ["none", "both"], "when": when},
    }
    assert problems_of(study_with(parameters)) == (
        f"search.parameters.distill.kdr.attention.when.{next(iter(when))}: {problem}",
    )


@pytest.mark.parametrize("wanted", [3, [2, 4], "not empty"])
def test_conditions_on_whole_numbers_and_fixed_settings_are_valid(wanted: Any) -> None:
    other = "distill.kdr.review_links" if wanted == "not empty" else "training.epochs"
    parameters = {
        "training.epochs": {"int": [2, 4]},
        "distill.kdr.attention": {"choice": ["none"], "when": {other: wanted}},
    }
    check_space(study_with(parameters))


def test_a_cycle_of_conditions_is_reported() -> None:
    parameters = {
        "distill.kdr.masks": {"choice": ["none", "boxes"], "when": {"distill.kdr.init": "dirac"}},
        "distill.kdr.init": {
            "choice": ["dirac", "kaiming"],
            "when": {"distill.kdr.masks": "none"},
        },
        "distill.kdr.weight": {"float": [1, 2]},
    }
    assert problems_of(study_with(parameters)) == (
        (
            "search.parameters.distill.kdr.masks.when: conditions must not form a cycle, got "
            "distill.kdr.masks, distill.kdr.init depending on each other"
        ),
    )


def test_a_grid_needs_points_for_float_ranges_and_a_limited_size() -> None:
    assert problems_of(study_with({"distill.kdr.weight": {"float": [1, 2]}}, sampler="grid")) == (
        (
            "search.parameters.distill.kdr.weight: must have `points` for a grid, got only the "
            "float range [1.0, 2.0]. Add points: 5"
        ),
    )
    assert problems_of(study_with({"seed": {"int": [0, 10_000]}}, sampler="grid")) == (
        (
            "search.sampler.grid: must have at most 10000 cells, got more. Use tpe or random, or "
            "narrow the ranges"
        ),
    )
    check_space(study_with({"seed": {"int": [1, 10_000]}}, sampler="grid"))


def test_more_enqueued_trials_than_the_budget_are_reported() -> None:
    study = study_with(
        {"distill.kdr.weight": {"float": [1, 9]}},
        trials=1,
        enqueue=[{}, {"distill.kdr.weight": 2}],
    )
    assert problems_of(study) == (
        "search.trials: must be at least the number of enqueued trials, 2, got 1",
    )


def test_enqueued_points_outside_the_space_are_reported() -> None:
    study = study_with(
        {"distill.kdr.weight": {"float": [1, 9]}}, enqueue=[{"distill.kdr.weight": 10}]
    )
    assert problems_of(study) == (
        "search.enqueue.0.distill.kdr.weight: must be in [1.0, 9.0], got 10",
    )


def test_all_problems_are_reported_at_once() -> None:
    study = study_with(
        {
            "distill.kdr.wieght": {"float": [1, 2]},
            "training.lr": {"float": [0, 1]},
            "training.epochs": {"int": [-1, 2]},
        }
    )
    paths = [problem.split(":")[0] for problem in problems_of(study)]
    assert sorted(paths) == [
        "search.parameters.distill.kdr.wieght",
        "search.parameters.training.epochs",
        "search.parameters.training.lr",
    ]
