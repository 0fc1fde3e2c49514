"""Points of a search space: order, conditions, subsets, grids."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.search import Parameter
from kdr.config.study import Study, study_from
from kdr.plan.points import (
    Point,
    corners,
    draw,
    extremes,
    grid,
    holds,
    num_cells,
    repaired,
    same,
    space_of,
)

LINKS = ["P4->P3", "P5->P4", "P6->P5", "P7->P6"]
SCALES = ["full", 4, 2, 1]


def study_with(parameters: dict[str, Any], **search: Any) -> Study:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
        "distill": {"kdr": {}},
    }
    return study_from(
        {
            "study": "s",
            "trial": trial,
            "search": {"trials": 8, "parameters": parameters, **search},
        },
        folder=Path("/"),
    )


def answers(chance: st.DataObject) -> Any:
    """Draws a parameter from hypothesis."""

    def suggest(path: str, parameter: Parameter) -> Any:
        if parameter.float_ is not None:
            return chance.draw(st.floats(*parameter.float_), label=path)
        if parameter.int_ is not None:
            return chance.draw(st.integers(*parameter.int_), label=path)
        if parameter.choice is not None:
            return chance.draw(st.sampled_from(parameter.choice), label=path)
        return chance.draw(
            st.lists(st.sampled_from(parameter.subset or ()), unique=True), label=path
        )

    return suggest


CONDITIONAL = study_with(
    {
        # the child first, because the order of drawing must not depend on the order in the file
        "distill.kdr.attention": {
            "choice": ["none", "both"],
            "when": {"distill.kdr.review_links": "not empty"},
        },
        "distill.kdr.fusion": {
            "choice": ["gated", "residual"],
            "when": {"distill.kdr.attention": ["both", "channel"]},
        },
        "distill.kdr.review_links": {"subset": LINKS[:2]},
        "distill.kdr.weight": {"float": [0.1, 50], "log": True, "points": 3},
        "distill.kdr.pyramid_scales": {"subset": SCALES, "at_least": 2},
        "training.step_factor": {
            "float": [0.1, 0.5],
            "points": 2,
            "when": {"training.schedule": "cosine"},
        },
    }
)


@given(st.data())
def test_every_draw_meets_conditions_ranges_and_at_least(data: st.DataObject) -> None:
    space = space_of(CONDITIONAL)
    point = draw(space, answers(data))
    assert ("distill.kdr.attention" in point) == bool(point["distill.kdr.review_links"])
    base_attention = "both"
    assert ("distill.kdr.fusion" in point) == (
        point.get("distill.kdr.attention", base_attention) == "both"
    )
    assert "training.step_factor" not in point
    assert len(point["distill.kdr.pyramid_scales"]) >= 2
    assert CONDITIONAL.trial_with(point).distill.kdr is not None


def test_a_parameter_is_drawn_after_those_that_its_conditions_name() -> None:
    space = space_of(CONDITIONAL)
    order = list(space.parameters)
    assert all(
        order.index(other) < order.index(path)
        for path in order
        for other in space.parameters[path].when
        if other in order
    )


def test_an_undrawn_parameter_has_the_trials_value_in_conditions() -> None:
    point = next(
        point for point in grid(space_of(CONDITIONAL)) if not point["distill.kdr.review_links"]
    )
    assert "distill.kdr.attention" not in point
    assert "distill.kdr.fusion" in point  # the trial's attention is `both`


@given(
    st.lists(st.sampled_from("abcdef"), unique=True, min_size=1).flatmap(
        lambda members: st.tuples(
            st.just(members), st.integers(0, len(members)), st.sets(st.sampled_from(members))
        )
    )
)
def test_a_filled_up_subset_keeps_the_drawn_members_and_adds_the_first_missing(
    case: tuple[list[str], int, set[str]],
) -> None:
    members, at_least, drawn = case
    result = repaired(Parameter(subset=members, at_least=at_least), sorted(drawn))
    added = [member for member in members if member not in drawn][: max(0, at_least - len(drawn))]
    assert result == [member for member in members if member in drawn or member in added]
    assert len(result) == max(at_least, len(drawn))


def test_a_grid_has_every_combination_once() -> None:
    study = study_with(
        {
            "training.epochs": {"int": [3, 5]},
            "distill.kdr.weight": {"float": [0.1, 10], "log": True, "points": 3},
            "distill.kdr.pyramid_scales": {"subset": SCALES, "at_least": 3},
            "distill.kdr.attention": {"choice": ["none", "both"]},
        }
    )
    cells = list(grid(space_of(study)))
    assert len(cells) == num_cells(space_of(study)) == 3 * 3 * 5 * 2
    assert len({str(cell) for cell in cells}) == len(cells)
    assert {cell["training.epochs"] for cell in cells} == {3, 4, 5}
    assert sorted({cell["distill.kdr.weight"] for cell in cells}) == pytest.approx([0.1, 1, 10])


def test_a_grid_leaves_out_undrawn_parameters_and_has_no_duplicates() -> None:
    study = study_with(
        {
            "distill.kdr.review_links": {"subset": LINKS[:2]},
            "distill.kdr.attention": {
                "choice": ["none", "spatial", "both"],
                "when": {"distill.kdr.review_links": "not empty"},
            },
        }
    )
    cells = list(grid(space_of(study)))
    assert len(cells) == 1 + 3 * 3
    assert cells.count({"distill.kdr.review_links": []}) == 1


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.integers(2, 9), st.booleans())
def test_a_grid_of_reals_includes_both_ends_and_increases(
    low: float, factor: float, points: int, log: bool
) -> None:
    study = study_with(
        {"distill.kdr.weight": {"float": [low, low * factor], "points": points, "log": log}}
    )
    values = [cell["distill.kdr.weight"] for cell in grid(space_of(study))]
    assert (values[0], values[-1], len(values)) == (low, low * factor, points)
    assert all(one < other for one, other in itertools.pairwise(values))


def test_an_infinite_space_has_no_number_of_cells() -> None:
    assert num_cells(space_of(study_with({"distill.kdr.weight": {"float": [1, 2]}}))) is None
    assert num_cells(space_of(study_with({"data.seed": {"int": [1, 20_000]}}))) is None


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Parameter.model_validate({"float": (1, 2)}), [1, 2]),
        (Parameter.model_validate({"int": (1, 9)}), [1, 9]),
        (Parameter(choice=("a", None)), ["a", None]),
        (Parameter(subset=("a", "b", "c")), [[], ["a"], ["b"], ["c"], ["a", "b", "c"]]),
        (Parameter(subset=("a", "b", "c"), at_least=2), [["a", "b"], ["a", "c"], ["a", "b", "c"]]),
    ],
)
def test_extremes_are_ends_members_and_smallest_and_largest_subsets(
    parameter: Parameter, expected: list[Any]
) -> None:
    assert extremes(parameter) == expected


def test_corners_are_all_combinations_of_extremes() -> None:
    study = study_with(
        {"distill.kdr.weight": {"float": [1, 2]}, "training.epochs": {"int": [1, 9]}}
    )
    expected: list[Point] = [
        {"distill.kdr.weight": weight, "training.epochs": epochs}
        for weight in (1, 2)
        for epochs in (1, 9)
    ]
    assert list(corners(space_of(study))) == expected


@pytest.mark.parametrize(
    ("wanted", "value", "expected"),
    [
        ("empty", [], True),
        ("empty", ["a"], False),
        ("empty", None, False),
        ("not empty", ("a",), True),
        ("not empty", None, False),
        ("both", "both", True),
        (["both", "none"], "none", True),
        (["both", "none"], "spatial", False),
        (1, 1.0, True),
        (1, True, False),
        (None, None, True),
    ],
)
def test_a_condition_holds_for_its_values(wanted: Any, value: Any, expected: bool) -> None:
    assert holds(wanted, value) == expected


def test_one_and_true_are_not_the_same() -> None:
    assert same(1, 1.0)
    assert not same(1, True)
