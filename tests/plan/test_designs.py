"""The arms of each design: their names, changes and order."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.ablation import BASELINE, Ablation
from kdr.config.problems import validated
from kdr.config.study import study_from
from kdr.plan.designs import arm_points, arms_of, combined, designed_arms, identity, left_out_arms

FACTORS: dict[str, Any] = {
    "review": {"off": {"distill.kdr.review_links": [], "distill.kdr.attention": "none"}},
    "weight": {"low": {"distill.kdr.weight": 1.0}, "high": {"distill.kdr.weight": 10.0}},
}
SWITCHES: dict[str, Any] = {
    name: {"off": {f"distill.kdr.{name}": "none"}}
    for name in ("attention", "masks", "normalisation")
}


def ablation_with(**settings: Any) -> Ablation:
    return validated(Ablation, {"factors": FACTORS, "seeds": [1, 2], **settings})


def names(ablation: Ablation) -> list[str]:
    return [arm.name for arm in arms_of(ablation)]


@pytest.mark.parametrize("design", ["leave_one_out", "one_at_a_time"])
def test_each_level_of_each_factor_is_changed_alone(design: str) -> None:
    assert names(ablation_with(design=design)) == [
        BASELINE,
        "review=off",
        "weight=low",
        "weight=high",
    ]


def test_a_factorial_has_every_combination() -> None:
    assert names(ablation_with(design="factorial")) == [
        BASELINE,
        "weight=low",
        "weight=high",
        "review=off",
        "review=off, weight=low",
        "review=off, weight=high",
    ]


def test_factors_are_put_back_one_by_one_into_nothing() -> None:
    arms = arms_of(ablation_with(design="add_one_in", factors=SWITCHES))
    assert [arm.name for arm in arms] == [
        "nothing",
        "+attention",
        "+masks",
        "+normalisation",
        BASELINE,
    ]
    assert [arm.is_reference for arm in arms] == [True, False, False, False, False]
    assert arms[0].changed_levels == dict.fromkeys(SWITCHES, "off")
    assert arms[1].levels == {"attention": BASELINE, "masks": "off", "normalisation": "off"}
    assert arms[-1].changes == {}


def test_arms_can_be_listed() -> None:
    arms = arms_of(
        ablation_with(
            design="arms",
            factors={},
            arms={"plain": {"distill": {}}, "paper": {"training.lr": 0.1}},
        )
    )
    assert [(arm.name, arm.levels, arm.changes) for arm in arms] == [
        (BASELINE, {}, {}),
        ("plain", {}, {"distill": {}}),
        ("paper", {}, {"training.lr": 0.1}),
    ]
    assert [arm.is_reference for arm in arms] == [True, False, False]


def test_an_arms_own_changes_win_over_the_baselines() -> None:
    baseline = {"distill.kdr.weight": 5.0, "training.lr": 0.1}
    changes = {arm.name: arm.changes for arm in arms_of(ablation_with(baseline=baseline))}
    assert changes[BASELINE] == baseline
    assert changes["weight=low"] == {"distill.kdr.weight": 1.0, "training.lr": 0.1}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (({"a.b": 1}, {"a.b": 2}), {"a.b": 2}),
        (({"a.b": 1, "c": 1}, {"a": None}), {"c": 1, "a": None}),
        (({"a": {}}, {"a.b": 1}), {"a": {}, "a.b": 1}),
        (({"ab": 1}, {"a": 2}), {"ab": 1, "a": 2}),
    ],
)
def test_a_change_of_a_group_drops_earlier_changes_inside_it(
    groups: Any, expected: Mapping[str, Any]
) -> None:
    assert combined(*groups) == expected


def test_leaving_out_a_cell_skips_every_arm_with_its_levels() -> None:
    factors = FACTORS | {"masks": SWITCHES["masks"]}
    ablation = ablation_with(
        design="factorial", factors=factors, leave_out=[{"review": "off", "weight": "low"}]
    )
    assert [arm.name for arm in left_out_arms(ablation)] == [
        "review=off, weight=low",
        "review=off, weight=low, masks=off",
    ]
    assert len(arms_of(ablation)) == 2 * 3 * 2 - 2


def test_baseline_is_a_level_that_leave_out_can_name() -> None:
    ablation = ablation_with(design="factorial", leave_out=[{"review": BASELINE, "weight": "low"}])
    assert [arm.name for arm in left_out_arms(ablation)] == ["weight=low"]


def test_all_arms_of_a_seed_come_before_the_next_seed() -> None:
    points = [(arm.name, point["seed"]) for arm, point in arm_points(ablation_with(seeds=[7, 3]))]
    assert points == [
        (name, seed)
        for seed in (7, 3)
        for name in (BASELINE, "review=off", "weight=low", "weight=high")
    ]


levels_of_factors = st.lists(st.integers(1, 3), min_size=1, max_size=4)


def with_factors(num_levels: list[int], **settings: Any) -> Ablation:
    """Returns an ablation with factors f0, f1, ..., each changing its own setting."""
    factors = {
        f"f{index}": {f"l{level}": {f"group.setting{index}": level} for level in range(number)}
        for index, number in enumerate(num_levels)
    }
    return ablation_with(factors=factors, **settings)


@given(levels_of_factors)
def test_the_number_of_arms_follows_from_the_numbers_of_levels(num_levels: list[int]) -> None:
    for design in ("leave_one_out", "one_at_a_time"):
        assert len(arms_of(with_factors(num_levels, design=design))) == 1 + sum(num_levels)
    assert len(arms_of(with_factors(num_levels, design="factorial"))) == math.prod(
        1 + number for number in num_levels
    )
    switches = [1] * len(num_levels)
    assert len(arms_of(with_factors(switches, design="add_one_in"))) == 2 + len(switches)


@given(
    levels_of_factors,
    st.sampled_from(["leave_one_out", "one_at_a_time", "factorial", "add_one_in"]),
)
def test_every_arm_differs_from_the_baseline_in_exactly_its_factors(
    num_levels: list[int], design: str
) -> None:
    num_levels = [1] * len(num_levels) if design == "add_one_in" else num_levels
    ablation = with_factors(num_levels, design=design)
    arms = arms_of(ablation)
    assert [arm.name for arm in arms].count(BASELINE) == 1
    assert [arm for arm in arms if arm.is_reference] == [arms[0]]
    assert len({tuple(arm.levels.items()) for arm in arms}) == len(arms) or (
        design,
        len(num_levels),
    ) == ("add_one_in", 1)
    for arm in arms:
        assert arm.levels.keys() == ablation.factors.keys()
        own = [ablation.factors[factor][level] for factor, level in arm.changed_levels.items()]
        assert arm.changes == {path: value for changes in own for path, value in changes.items()}


@given(levels_of_factors, st.data())
def test_leave_out_removes_exactly_the_arms_with_the_named_levels(
    num_levels: list[int], data: st.DataObject
) -> None:
    factors = with_factors(num_levels).factors
    named = data.draw(st.sets(st.sampled_from(sorted(factors)), min_size=1))
    cell = {
        factor: data.draw(st.sampled_from([BASELINE, *factors[factor]])) for factor in sorted(named)
    }
    ablation = with_factors(num_levels, design="factorial", leave_out=[cell])
    all_arms = {arm.name for arm in designed_arms(ablation)}
    kept = {arm.name for arm in arms_of(ablation)}
    gone = {arm.name for arm in left_out_arms(ablation)}
    assert kept | gone == all_arms
    assert not kept & gone
    assert len(gone) == math.prod(
        1 + number for factor, number in zip(factors, num_levels, strict=True) if factor not in cell
    )


def test_settings_without_effect_do_not_change_the_identity() -> None:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"training": {"epochs": 2}},
        "distill": {"kdr": {"review_links": []}},
    }
    study = study_from({"study": "s", "trial": trial}, folder=Path("/"))
    one, other = (
        study.trial_with({"distill.kdr.attention": attention}) for attention in ("none", "both")
    )
    assert identity(one) == identity(other)
    assert identity(one) != identity(study.trial_with({"distill.kdr.weight": 9}))
