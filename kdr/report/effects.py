"""The statistics of a comparison: effects, intervals, p values and verdicts, on plain arrays.

An effect is an estimate with a standard error and degrees of freedom. Its interval, p and
equivalence test all use Student's t; the exact sign-flip p assumes no normal distribution.
`docs/ablations.md` explains the verdicts to users.
"""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from kdr.report.student_t import t_cdf, t_quantile

Word = Literal["helps", "hurts", "no relevant effect", "undecided"]
ALPHA = 0.05
"""Level of every test, after adjustment; intervals cover 1 - ALPHA."""
MOST_SEEDS = 1000
"""Limit of the search for a sufficient number of seeds."""
_t_cdf = np.vectorize(t_cdf, otypes=[float])
_MOST_FLIPS = 40  # seeds; each half has at most 2^20 sums, which fit into memory


@dataclass(frozen=True)
class Effect:
    """A difference between arms, in the unit of the metric.

    Fields that need a spread are None for a single seed, or if all seeds agree exactly.
    """

    n: int
    """Number of pairs; if unpaired, the number of trials in the smaller arm."""
    difference: float
    """Arm minus reference."""
    se: float | None = None
    """Standard error of the difference."""
    df: float | None = None
    """Degrees of freedom of the standard error."""
    df_per_seed: float = 1
    """Degrees of freedom that each additional seed adds."""
    sign_flip_p: float | None = None
    """Exact two-sided p over all 2^n signs of the paired differences."""
    paired: bool = True

    @property
    def sd(self) -> float | None:
        """Standard deviation of the difference of one seed."""
        return None if self.se is None else self.se * math.sqrt(self.n)

    @property
    def p(self) -> float | None:
        """Two-sided p of the t test for a difference of 0."""
        return None if self.se is None else float(two_sided_p(self.difference, self.se, self.df))

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % t interval of the difference, not adjusted for other comparisons."""
        if self.se is None or self.df is None:
            return None
        half = float(half_width(self.se, self.df))
        return self.difference - half, self.difference + half

    def tost_p(self, margin: float) -> float | None:
        """Returns the equivalence p: the larger of two one-sided tests against +-margin."""
        return (
            None
            if self.se is None
            else float(equivalence_p(self.difference, self.se, self.df, margin))
        )

    def with_seeds(self, n: ArrayLike) -> tuple[Any, Any]:
        """Returns standard error and degrees of freedom for n seeds at the same spread."""
        assert self.se is not None
        assert self.df is not None
        n = np.asarray(n, float)
        return self.se * np.sqrt(self.n / n), self.df + (n - self.n) * self.df_per_seed


@dataclass(frozen=True)
class Verdict:
    """The verdict on an effect within its family of comparisons."""

    word: Word
    p_adjusted: float | None = None
    tost_p_adjusted: float | None = None
    more_seeds: int | None = None
    """Additional seeds that would decide the effect if difference and spread stayed the same;
    MOST_SEEDS means that many or more."""


def paired_effect(arm: ArrayLike, reference: ArrayLike) -> Effect:
    """Returns the mean of paired differences as an effect.

    Args:
        arm: (n,) values of one arm.
        reference: (n,) values of the other arm, same seeds in the same order.
    """
    arm, reference = np.asarray(arm, float), np.asarray(reference, float)
    assert arm.shape == reference.shape, "paired arms need one value per seed each"
    differences = arm - reference
    n, mean = len(arm), float(differences.mean())
    if n < 2 or _is_rounding(float(np.ptp(differences)), arm, reference):
        return Effect(n, mean)
    se = float(differences.std(ddof=1)) / math.sqrt(n)
    return Effect(n, mean, se, n - 1, sign_flip_p=sign_flip_p(differences))


def unpaired_effect(arm: ArrayLike, reference: ArrayLike) -> Effect:
    """Returns the difference of two means with Welch's standard error.

    For trials with equal seeds that did not see the same images.

    Args:
        arm: (n,) values of one arm.
        reference: (m,) values of the other arm.
    """
    arm, reference = np.asarray(arm, float), np.asarray(reference, float)
    n, mean = min(len(arm), len(reference)), float(arm.mean() - reference.mean())
    if n < 2 or _is_rounding(max(float(np.ptp(arm)), float(np.ptp(reference))), arm, reference):
        return Effect(n, mean, paired=False)
    parts = np.array([values.var(ddof=1) / len(values) for values in (arm, reference)])
    # Welch and Satterthwaite's degrees of freedom
    df = parts.sum() ** 2 / (parts**2 / [len(arm) - 1, len(reference) - 1]).sum()
    return Effect(
        n, mean, math.sqrt(parts.sum()), float(df), df_per_seed=df / (n - 1), paired=False
    )


def verdicts_on(
    effects: Sequence[Effect], *, margin: float | None, adjust: bool = True
) -> list[Verdict]:
    """Returns the verdicts on a family of comparisons.

    *helps*, *hurts*: the adjusted p is below ALPHA. *no relevant effect*: it is not, and the
    adjusted equivalence test places the difference within the margin. *undecided*: neither.

    Args:
        effects: all comparisons that are read together; those without a p do not count in the
            adjustment.
        margin: largest difference that does not matter; None if none was declared.
        adjust: by Holm's method; False for a comparison that was declared beforehand.
    """
    ps = _adjusted([effect.p for effect in effects], adjust)
    tosts = _adjusted(
        [None if margin is None else effect.tost_p(margin) for effect in effects], adjust
    )
    family = sum(p is not None for p in ps) if adjust else 1
    return [
        _verdict(effect, p, tost, margin, family)
        for effect, p, tost in zip(effects, ps, tosts, strict=True)
    ]


def holm(p: ArrayLike) -> Any:
    """Returns Holm's adjusted p values along the last axis.

    Rejecting every adjusted p below a level keeps the family-wise error at that level.
    """
    p = np.asarray(p, float)
    m, order = p.shape[-1], np.argsort(p, axis=-1, kind="stable")
    # the smallest p is multiplied by m, the next by m - 1, and so on; never decreasing
    ascending = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(ascending, -1), 1.0), -1)
    return adjusted


def two_sided_p(difference: Any, se: Any, df: Any) -> Any:
    """Returns the two-sided p of the t test for a difference of 0; numbers or arrays."""
    return 2 * _t_cdf(-np.abs(difference) / se, df)


def half_width(se: Any, df: float, level: float = ALPHA) -> Any:
    """Returns half the width of the t interval that covers 1 - level; `se` may be an array."""
    return t_quantile(1 - level / 2, df) * se


def equivalence_p(difference: Any, se: Any, df: Any, margin: float) -> Any:
    """Returns the larger p of two one-sided t tests of |difference| < margin.

    TOST, Schuirmann 1987; numbers or arrays.
    """
    return _t_cdf((np.abs(difference) - margin) / se, df)


def sign_flip_p(differences: ArrayLike) -> float | None:
    """Returns the exact two-sided sign-flip p; None for more than 40 differences.

    It is the share of all 2^n sign patterns whose sum is at least as far from 0 as the observed
    one. Every sum is one of the first half plus one of the second: with the second half sorted,
    2^(n/2) binary searches count all 2^n of them.
    """
    differences = np.asarray(differences, float)
    n = len(differences)
    if n > _MOST_FLIPS:
        return None
    # sums that are equal up to rounding must count as equal
    reached = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    first, second = _all_sums(differences[: n // 2]), np.sort(_all_sums(differences[n // 2 :]))
    above = len(second) - np.searchsorted(second, reached - first, side="left")
    below = np.searchsorted(second, -reached - first, side="right")
    return min(1.0, float((above + below).sum() / 2.0**n))


def _all_sums(values: Any) -> Any:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _is_rounding(spread: float, *values: Any) -> bool:
    """Returns whether a spread is 0, or within the rounding error of its values."""
    return not spread > 1e-12 * max(float(np.abs(part).max()) for part in values)


def _adjusted(ps: Sequence[float | None], adjust: bool) -> list[float | None]:
    known = [p for p in ps if p is not None]
    # an effect without a p does not enlarge the family
    adjusted = iter(holm(known).tolist() if adjust and known else known)
    return [None if p is None else next(adjusted) for p in ps]


def _verdict(
    effect: Effect, p: float | None, tost: float | None, margin: float | None, family: int
) -> Verdict:
    if p is None:
        return Verdict("undecided")
    # checked before equivalence: an effect that is certain and small still helps or hurts
    if p < ALPHA:
        return Verdict("helps" if effect.difference > 0 else "hurts", p, tost)
    if tost is not None and tost < ALPHA:
        return Verdict("no relevant effect", p, tost)
    return Verdict("undecided", p, tost, _more_seeds(effect, margin, family))


def _more_seeds(effect: Effect, margin: float | None, family: int) -> int:
    """Returns the smallest number of additional seeds at which a test decides.

    Assumes Holm's hardest step, in which the p is multiplied by the size of the family.
    """

    def decides(num_more: int) -> bool:
        se, df = effect.with_seeds(effect.n + num_more)
        p = two_sided_p(effect.difference, se, df)
        if margin is not None:
            p = min(p, equivalence_p(effect.difference, se, df, margin))
        return bool(family * p < ALPHA)

    # if a test can decide at all, each additional seed lowers its p, so bisection finds the first
    return 1 + bisect.bisect_left(range(1, MOST_SEEDS), True, key=decides)
