import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdr.report.effects import Effect, paired_effect
from kdr.report.factorial import Contrast, factorial_effects

TWO = {"links": ("none", "all"), "attention": ("none", "both"), "mask": ("off", "on")}


Levels = Mapping[str, Sequence[str]]
Cells = dict[tuple[str, ...], Any]


def effect_of(contrast: Contrast) -> Effect:
    assert contrast.effect is not None
    return contrast.effect


def random_cells(levels: Levels, n: int, seed: int = 0) -> Cells:
    generator = np.random.default_rng(seed)
    blocks = generator.normal(size=n)  # each seed's own level
    return {
        cell: blocks + generator.normal(scale=0.3, size=n)
        for cell in itertools.product(*levels.values())
    }


def test_two_levels_are_least_squares_on_the_coding_of_minus_and_plus_one() -> None:
    n, values = 4, random_cells(TWO, 4)
    rows: list[list[float]] = []
    responses: list[float] = []
    for cell, cell_values in values.items():
        signs = [
            -1 if level == names[0] else 1 for level, names in zip(cell, TWO.values(), strict=True)
        ]
        for index, value in enumerate(cell_values):
            products = [a * b for a, b in itertools.combinations(signs, 2)]
            rows.append([*np.eye(n)[index], *signs, *products])
            responses.append(value)
    X, y = np.array(rows, float), np.array(responses)
    beta = np.linalg.solve(X.T @ X, X.T @ y)
    df = len(y) - X.shape[1]
    variance = ((y - X @ beta) ** 2).sum() / df
    found = factorial_effects(TWO, values)
    assert [contrast.name for contrast in found] == [
        "links: all - none",
        "attention: both - none",
        "mask: on - off",
        "links: all - none x attention: both - none",
        "links: all - none x mask: on - off",
        "attention: both - none x mask: on - off",
    ]
    for contrast, b, v in zip(
        found, beta[n:], variance * np.diag(np.linalg.inv(X.T @ X))[n:], strict=True
    ):
        effect = effect_of(contrast)
        assert (effect.difference, effect.se, effect.df) == pytest.approx((2 * b, 2 * v**0.5, df))
        assert effect.p == pytest.approx(2 * stats.t.sf(abs(b) / v**0.5, df))


def test_one_factor_of_two_levels_is_the_paired_comparison() -> None:
    values = random_cells({"links": ("none", "all")}, 6)
    [contrast] = factorial_effects({"links": ("none", "all")}, values)
    expected = paired_effect(values[("all",)], values[("none",)])
    assert effect_of(contrast).p == pytest.approx(expected.p)
    assert effect_of(contrast).interval == pytest.approx(expected.interval)
    assert effect_of(contrast).sign_flip_p == expected.sign_flip_p


def test_a_third_level_has_its_own_contrast_against_the_first() -> None:
    levels = {"links": ("none", "one", "all"), "mask": ("off", "on")}
    values = random_cells(levels, 3)
    found = {contrast.name: effect_of(contrast) for contrast in factorial_effects(levels, values)}
    assert len(found) == 2 + 1 + 2
    mean = {cell: cell_values.mean() for cell, cell_values in values.items()}
    expected = np.mean([mean["all", mask] - mean["none", mask] for mask in ("off", "on")])
    assert found["links: all - none"].difference == pytest.approx(expected)
    step_on, step_off = (mean["one", mask] - mean["none", mask] for mask in ("on", "off"))
    assert found["links: one - none x mask: on - off"].difference == pytest.approx(
        (step_on - step_off) / 2
    )


def additive(levels: Levels, steps: Mapping[str, float], n: int = 3) -> Cells:
    """Values without error: each level adds its step, and each seed its own level."""
    cells = itertools.product(*levels.values())
    return {cell: np.arange(n) + sum(steps.get(level, 0.0) for level in cell) for cell in cells}


def test_built_in_effects_are_found_and_without_error_nothing_is_tested() -> None:
    found = factorial_effects(TWO, additive(TWO, {"all": 0.5, "both": -0.25, "on": 0.125}))
    assert [effect_of(contrast).difference for contrast in found] == pytest.approx(
        [0.5, -0.25, 0.125, 0, 0, 0]
    )
    assert [effect_of(contrast).p for contrast in found] == [None] * 6


def test_a_seed_that_shifts_every_cell_changes_nothing() -> None:
    values = random_cells(TWO, 4)
    shifted = {cell: cell_values + np.array([5, -3, 8, 0]) for cell, cell_values in values.items()}
    for one, other in zip(
        factorial_effects(TWO, values), factorial_effects(TWO, shifted), strict=True
    ):
        assert (effect_of(one).difference, effect_of(one).se) == pytest.approx(
            (effect_of(other).difference, effect_of(other).se)
        )


def test_missing_cells_affect_only_the_effects_that_need_them() -> None:
    levels = {"links": ("none", "all"), "mask": ("off", "on")}
    values = random_cells(levels, 4)
    del values["all", "on"]
    found = factorial_effects(levels, values)
    assert [contrast.effect is None for contrast in found] == [True, True, True]
    three = {"links": ("none", "one", "all"), "mask": ("off", "on")}
    values = random_cells(three, 4)
    del values["all", "on"]
    not_estimable = [
        contrast.name for contrast in factorial_effects(three, values) if contrast.effect is None
    ]
    assert not_estimable == [
        "links: all - none",
        "mask: on - off",
        "links: all - none x mask: on - off",
    ]


def test_one_seed_is_tested_against_the_interactions_that_are_not_in_the_model() -> None:
    found = factorial_effects(TWO, random_cells(TWO, 1))
    assert {effect_of(contrast).df for contrast in found} == {1}
    assert {effect_of(contrast).sign_flip_p for contrast in found} == {None}
