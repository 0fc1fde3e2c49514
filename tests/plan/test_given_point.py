"""Points that were not drawn must meet the ranges and conditions of drawn points."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.study import Study, study_from
from kdr.errors import ConfigError
from kdr.plan.given_point import OutsideSpaceError, enqueued_points, point_of
from kdr.plan.points import Point, grid, space_of

PARAMETERS = {
    "distill.kdr.weight": {"float": [1, 5], "points": 3},
    "training.epochs": {"int": [2, 4]},
    "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4"]},
    "distill.kdr.pyramid_scales": {"choice": [["full"], ["full", 4]]},
    "distill.kdr.attention": {
        "choice": ["none", "both"],
        "when": {"distill.kdr.review_links": "not empty"},
    },
}
POINT: Point = {
    "distill.kdr.weight": 2.5,
    "training.epochs": 3,
    "distill.kdr.review_links": ["P4->P3"],
    "distill.kdr.pyramid_scales": ["full", 4],
    "distill.kdr.attention": "both",
}


def study_with(enqueue: list[dict[str, Any]], **base: Any) -> Study:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "distill": {"kdr": {"review_links": ["P4->P3"], "pyramid_scales": ["full", 4], **base}},
        "training": {"epochs": 3},
    }
    search = {"trials": 8, "parameters": PARAMETERS, "enqueue": enqueue}
    return study_from({"study": "s", "trial": trial, "search": search}, folder=Path("/"))


SPACE = space_of(study_with([]))
CELLS = list(grid(SPACE))


@given(st.sampled_from(CELLS))
def test_every_point_of_the_space_is_returned_unchanged(point: Point) -> None:
    assert point_of(SPACE, point) == point


def test_values_get_the_types_and_the_order_of_a_draw() -> None:
    point = point_of(
        SPACE, POINT | {"distill.kdr.weight": 2, "distill.kdr.review_links": ("P5->P4", "P4->P3")}
    )
    assert point == POINT | {
        "distill.kdr.weight": 2.0,
        "distill.kdr.review_links": ["P4->P3", "P5->P4"],
    }
    assert isinstance(point["distill.kdr.weight"], float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distill.kdr.weight": 6}, r"^distill\.kdr\.weight: must be in \[1.0, 5.0\], got 6$"),
        ({"distill.kdr.weight": float("nan")}, r"weight: must be in \[1.0, 5.0\], got nan"),
        ({"distill.kdr.weight": True}, r"weight: must be in \[1.0, 5.0\], got True"),
        ({"distill.kdr.weight": "2"}, r"weight: must be in \[1.0, 5.0\], got '2'"),
        ({"training.epochs": 2.5}, r"training\.epochs: must be a whole number, got 2.5"),
        (
            {"distill.kdr.pyramid_scales": ["full", 2]},
            r"pyramid_scales: must be one of \[\['full'\], \['full', 4\]\], got",
        ),
        (
            {"distill.kdr.review_links": "all"},
            r"review_links: must be a list of members of \['P4->P3', 'P5->P4'\], each once, got",
        ),
        (
            {"distill.kdr.review_links": ["P7->P6"]},
            r"review_links: must be a list of members of .*, got \['P7->P6'\]",
        ),
        ({"distill.kdr.review_links": ["P4->P3"] * 2}, r"review_links: .* each once, got"),
        (
            {"distill.kdr.review_links": []},
            r"attention: must be left out, because its `when` does not hold, got 'both'",
        ),
        (
            {"seed": 1},
            r"^seed: must be one of the searched parameters distill\.kdr\.weight, .*, got 1$",
        ),
    ],
)
def test_a_value_outside_the_space_is_refused_with_its_range(change: Point, message: str) -> None:
    with pytest.raises(OutsideSpaceError, match=message):
        point_of(SPACE, POINT | change)


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(OutsideSpaceError, match=r"^training\.epochs: must be given$"):
        point_of(SPACE, {path: value for path, value in POINT.items() if path != "training.epochs"})


def test_too_small_a_subset_is_refused_and_not_filled_up() -> None:
    parameters = {"distill.kdr.pyramid_scales": {"subset": ["full", 4, 2], "at_least": 2}}
    content = {
        "study": "s",
        "trial": {"data": {"dataset": "shapes"}},
        "search": {"trials": 1, "parameters": parameters},
    }
    with pytest.raises(OutsideSpaceError, match="each once and 2 or more of them, got"):
        point_of(
            space_of(study_from(content, folder=Path("/"))), {"distill.kdr.pyramid_scales": [4]}
        )


def test_parameters_that_an_enqueued_entry_leaves_out_have_the_trials_values() -> None:
    study = study_with([{"distill.kdr.weight": 4}, {"distill.kdr.review_links": []}])
    first, second = enqueued_points(study, space_of(study))
    assert first == POINT | {"distill.kdr.weight": 4.0}
    assert second == {
        name: value for name, value in POINT.items() if name != "distill.kdr.attention"
    } | {
        "distill.kdr.review_links": [],
        "distill.kdr.weight": 3.0,
    }


def test_an_enqueued_entry_has_the_defaults_of_its_own_preset() -> None:
    parameters = {
        "distill.kdr.preset": {"choice": ["kdr", "kdr-paper"]},
        "distill.kdr.fusion": {"choice": ["residual", "gated"]},
    }
    study = study_from(
        {
            "study": "s",
            "trial": {
                "data": {"dataset": "shapes"},
                "teacher": {"training": {}},
                "distill": {"kdr": {}},
            },
            "search": {
                "trials": 1,
                "parameters": parameters,
                "enqueue": [{"distill.kdr.preset": "kdr-paper"}],
            },
        },
        folder=Path("/"),
    )
    [point] = enqueued_points(study, space_of(study))
    assert point == {"distill.kdr.preset": "kdr-paper", "distill.kdr.fusion": "gated"}


def test_every_enqueued_entry_outside_the_space_is_named() -> None:
    study = study_with(
        [{"distill.kdr.weight": 9}, {"distill.kdr.wieght": 2}, {"training.epochs": "many"}, {}],
        weight=0.5,
    )
    with pytest.raises(ConfigError) as caught:
        enqueued_points(study, space_of(study))
    problems = caught.value.problems
    assert problems[0] == "search.enqueue.0.distill.kdr.weight: must be in [1.0, 5.0], got 9"
    assert problems[1].startswith(
        "search.enqueue.1.distill.kdr.wieght: must be one of the searched parameters"
    )
    assert problems[2] == "search.enqueue.2.training.epochs: must be a whole number, got 'many'"
    assert problems[3] == "search.enqueue.3.distill.kdr.weight: must be in [1.0, 5.0], got 0.5"
