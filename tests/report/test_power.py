import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import kdr
from kdr.report.power import power_of, smallest_effect, spread_of_differences


def smallest(n: int, num_comparisons: int = 1) -> float:
    effect = smallest_effect(n, num_comparisons)
    assert effect is not None
    return effect


@pytest.mark.parametrize("n", [2, 3, 8, 30])
@pytest.mark.parametrize("num_comparisons", [1, 4])
def test_the_power_is_that_of_the_noncentral_t(n: int, num_comparisons: int) -> None:
    effect = 0.7
    critical = stats.t.ppf(1 - 0.05 / num_comparisons / 2, n - 1)
    noncentral = stats.nct(n - 1, effect * math.sqrt(n))
    assert power_of(effect, n, num_comparisons) == pytest.approx(
        noncentral.sf(critical) + noncentral.cdf(-critical), rel=1e-9
    )


def test_without_an_effect_the_power_is_the_level_of_the_test() -> None:
    assert power_of(0.0, 8, 5) == pytest.approx(0.01)


@pytest.mark.parametrize("n", [3, 8])
def test_an_effect_of_the_smallest_size_is_found_in_four_of_five_simulated_studies(n: int) -> None:
    differences = np.random.default_rng(0).normal(smallest(n), 1.0, size=(40_000, n))
    found = stats.ttest_1samp(differences, 0.0, axis=1).pvalue < 0.05
    assert np.mean(found) == pytest.approx(0.8, abs=0.01)


def test_more_seeds_decide_smaller_effects_and_more_comparisons_larger_ones() -> None:
    by_seeds = [smallest(n) for n in range(2, 40)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    by_comparisons = [smallest(8, m) for m in range(1, 20)]
    assert by_comparisons == sorted(by_comparisons)
    # as in published tables of the paired t test
    assert smallest_effect(8) == pytest.approx(1.1560, abs=1e-4)


def test_the_documented_effects_are_those_of_the_code() -> None:
    page = (Path(kdr.__file__).parents[1] / "docs" / "ablations.md").read_text(encoding="utf-8")
    for n in (3, 5, 8, 12):
        assert f"| {n} | {' | '.join(f'{smallest(n, m):.2f}' for m in (1, 6, 11))} |" in page


def test_one_seed_decides_nothing() -> None:
    assert smallest_effect(1) is None


def test_power_is_a_number_where_probabilities_underflow() -> None:
    assert power_of(1e3, 8) == 1.0
    assert smallest(2, 500) > 1000


def test_the_spread_is_pooled_over_arms_and_shared_seeds() -> None:
    reference = {1: 0.1, 2: 0.2, 3: 0.3}
    arms = [{1: 0.2, 2: 0.4, 9: 0.9}, {1: 0.1, 2: 0.2, 3: 0.6}, {3: 0.5}]
    first, second = np.var([0.1, 0.2], ddof=1), np.var([0.0, 0.0, 0.3], ddof=1)
    assert spread_of_differences(arms, reference) == pytest.approx(
        math.sqrt((first + 2 * second) / 3)
    )
    assert spread_of_differences([{1: 0.5}], reference) is None
