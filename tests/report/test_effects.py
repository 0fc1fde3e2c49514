import itertools
import math
import random
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from kdr.report.effects import (
    MOST_SEEDS,
    Effect,
    equivalence_p,
    holm,
    paired_effect,
    sign_flip_p,
    unpaired_effect,
    verdicts_on,
)

APS = st.floats(0, 1, allow_subnormal=False).map(lambda value: round(value, 4))
PAIRS = st.lists(st.tuples(APS, APS), min_size=3, max_size=9)
Pairs = list[tuple[float, float]]
Floats = npt.NDArray[np.float64]
PS = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def columns(pairs: Pairs) -> tuple[Floats, Floats]:
    arm, reference = np.array(pairs).T
    assume(np.ptp(arm - reference) > 1e-6)
    return arm, reference


@given(PAIRS)
def test_paired_p_and_interval_are_scipys(pairs: Pairs) -> None:
    arm, reference = columns(pairs)
    effect, expected = paired_effect(arm, reference), stats.ttest_rel(arm, reference)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert effect.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)
    assert effect.sd == pytest.approx(np.std(arm - reference, ddof=1))


@given(st.lists(APS, min_size=2, max_size=7), st.lists(APS, min_size=2, max_size=7))
def test_unpaired_p_and_interval_are_welchs(arm: list[float], reference: list[float]) -> None:
    assume(np.ptp(arm) > 1e-6 and np.ptp(reference) > 1e-6)
    effect = unpaired_effect(arm, reference)
    expected = stats.ttest_ind(arm, reference, equal_var=False)
    assert (effect.paired, effect.sign_flip_p) == (False, None)
    assert effect.p == pytest.approx(expected.pvalue, rel=1e-9, abs=1e-300)
    assert effect.interval == pytest.approx(tuple(expected.confidence_interval()), abs=1e-12)


@given(PAIRS, st.floats(0.001, 0.5))
def test_equivalence_is_the_larger_of_two_one_sided_tests(pairs: Pairs, margin: float) -> None:
    arm, reference = columns(pairs)
    above = stats.ttest_1samp(arm - reference, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(arm - reference, margin, alternative="less").pvalue
    assert paired_effect(arm, reference).tost_p(margin) == pytest.approx(
        max(above, below), rel=1e-9, abs=1e-300
    )


def every_flip(differences: Sequence[float]) -> float:
    """Returns p by listing all signs."""
    sums = [
        abs(float(np.dot(signs, differences)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    return sum(value >= abs(sum(differences)) - 1e-9 for value in sums) / len(sums)


@given(st.lists(APS, min_size=1, max_size=10))
def test_sign_flip_p_agrees_with_listing_all_signs(differences: list[float]) -> None:
    assert sign_flip_p(differences) == every_flip(differences)
    assert sign_flip_p([1 - value for value in differences]) == every_flip(
        [1 - value for value in differences]
    )


@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 2)), min_size=2, max_size=10))
def test_sign_flip_p_is_scipys_permutation_test(differences: list[float]) -> None:
    assume(abs(sum(differences)) > 1e-6)
    found = stats.permutation_test(
        [differences], np.sum, permutation_type="samples", n_resamples=2**10
    )
    assert sign_flip_p(differences) == pytest.approx(found.pvalue)


@pytest.mark.parametrize(
    ("n", "least"), [(1, 1), (3, 0.25), (5, 0.0625), (6, 0.03125), (30, 2**-29)]
)
def test_the_smallest_sign_flip_p_is_two_in_all_signs(n: int, least: float) -> None:
    assert sign_flip_p(np.arange(1, n + 1) / 100) == least
    assert sign_flip_p(np.ones(41)) is None


@given(PS)
def test_holm_is_scipys_bonferroni_step_by_step(ps: list[float]) -> None:
    order, adjusted, largest = np.argsort(ps), np.empty(len(ps)), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    assert holm(ps) == pytest.approx(adjusted)


@given(PS)
def test_holm_is_never_below_the_raw_p_and_keeps_their_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    assert ((adjusted >= np.array(ps)) & (adjusted <= 1)).all()
    assert (np.diff(adjusted[np.argsort(ps, kind="stable")]) >= 0).all()


def test_holm_adjusts_each_row_as_its_own_family() -> None:
    ps = np.random.default_rng(0).uniform(size=(50, 6))
    assert holm(ps) == pytest.approx(np.array([holm(row) for row in ps]))


@given(PAIRS, st.floats(0.001, 0.1))
def test_swapping_the_arms_swaps_helps_and_hurts(pairs: Pairs, margin: float) -> None:
    arm, reference = columns(pairs)
    [one], [other] = (
        verdicts_on([effect], margin=margin)
        for effect in (paired_effect(arm, reference), paired_effect(reference, arm))
    )
    assert other.word == {"helps": "hurts", "hurts": "helps"}.get(one.word, one.word)
    assert (other.p_adjusted, other.more_seeds) == (one.p_adjusted, one.more_seeds)


@given(PAIRS, st.integers(-5, 5), st.randoms(use_true_random=False))
def test_neither_a_constant_on_both_arms_nor_the_order_of_seeds_changes_anything(
    pairs: Pairs, constant: int, random: random.Random
) -> None:
    arm, reference = columns(pairs)
    effect, order = paired_effect(arm, reference), random.sample(range(len(arm)), len(arm))
    for changed in (
        paired_effect(arm + constant, reference + constant),
        paired_effect(arm[order], reference[order]),
    ):
        assert changed.sign_flip_p == effect.sign_flip_p
        assert (changed.difference, changed.se, changed.p) == pytest.approx(
            (effect.difference, effect.se, effect.p), abs=1e-9
        )


def effect(difference: float, se: float, n: int = 5) -> Effect:
    return Effect(n, difference, se, n - 1)


@pytest.mark.parametrize(
    ("difference", "se", "margin", "word"),
    [
        (0.02, 0.002, 0.005, "helps"),
        (-0.02, 0.002, 0.005, "hurts"),
        (0.0005, 0.001, 0.005, "no relevant effect"),
        (0.0005, 0.001, None, "undecided"),
        (0.004, 0.004, 0.005, "undecided"),
        (0.002, 0.0005, 0.005, "helps"),  # both tests decide: there is an effect, however small
    ],
)
def test_each_verdict_has_one_rule(
    difference: float, se: float, margin: float | None, word: str
) -> None:
    [verdict] = verdicts_on([effect(difference, se)], margin=margin)
    assert verdict.word == word
    assert (verdict.more_seeds is not None) == (word == "undecided")


def test_a_family_is_adjusted_and_a_declared_contrast_is_not() -> None:
    effects = [effect(0.02, 0.006), effect(0.001, 0.006), effect(0.002, 0.006)]
    assert effects[0].p is not None
    assert effects[0].p == pytest.approx(0.029, abs=1e-3)
    assert [verdict.word for verdict in verdicts_on(effects, margin=0.005)] == ["undecided"] * 3
    assert verdicts_on(effects, margin=0.005)[0].p_adjusted == pytest.approx(3 * effects[0].p)
    assert verdicts_on(effects[:1], margin=0.005, adjust=False)[0].word == "helps"


@given(st.floats(0.0005, 0.05), st.floats(0.0005, 0.02), st.integers(2, 8), st.integers(1, 4))
def test_so_many_more_seeds_decide_and_one_fewer_does_not(
    difference: float, se: float, n: int, family: int
) -> None:
    margin = 0.005
    verdicts = verdicts_on([effect(difference, se, n)] * family, margin=margin)
    more = verdicts[0].more_seeds or MOST_SEEDS
    assume(more < MOST_SEEDS)

    def decides(seeds: int) -> bool:
        wider = effect(difference, se * math.sqrt(n / seeds), seeds)
        assert wider.p is not None
        return (
            family * min(wider.p, float(equivalence_p(difference, wider.se, seeds - 1, margin)))
            < 0.05
        )

    assert decides(n + more)
    assert more == 1 or not decides(n + more - 1)


def test_the_search_for_enough_seeds_has_a_bound() -> None:
    assert verdicts_on([effect(1e-9, 0.1)], margin=None)[0].more_seeds == MOST_SEEDS


@pytest.mark.parametrize("values", [[0.3], [0.3, 0.4, 0.1]], ids=["one seed", "no spread"])
def test_without_spread_only_the_difference_is_known(values: list[float]) -> None:
    for found in (paired_effect(np.array(values) + 0.01, values), paired_effect(values, values)):
        assert (
            found.se,
            found.p,
            found.interval,
            found.sd,
            found.tost_p(0.1),
            found.sign_flip_p,
        ) == (None,) * 6
        assert verdicts_on([found], margin=0.1)[0].word == "undecided"
        assert verdicts_on([found], margin=0.1)[0].more_seeds is None
    assert paired_effect(np.array(values) + 0.01, values).difference == pytest.approx(0.01)
    assert unpaired_effect([0.3, 0.3], [0.2, 0.2]).p is None
    assert unpaired_effect([0.3, 0.3], [0.2, 0.3]).p is not None


def test_two_seeds_have_one_degree_of_freedom() -> None:
    found = paired_effect([0.30, 0.32], [0.28, 0.29])
    assert found.interval == pytest.approx(
        (0.025 - 12.7062 * 0.005, 0.025 + 12.7062 * 0.005), abs=1e-5
    )


def test_an_effect_without_spread_takes_no_part_in_the_adjustment() -> None:
    one, none = effect(0.02, 0.002), paired_effect([0.3], [0.2])
    assert [verdict.p_adjusted for verdict in verdicts_on([none, one], margin=None)] == [
        None,
        one.p,
    ]
