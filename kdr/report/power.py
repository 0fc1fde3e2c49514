"""Statistical power: the smallest effect that a number of seeds can detect."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kdr.report.effects import ALPHA
from kdr.report.student_t import noncentral_t_cdf, t_quantile

POWER = 0.8
"""Probability of detecting an effect of the smallest detectable size."""


def smallest_effect(
    num_seeds: int, num_comparisons: int = 1, *, power: float = POWER
) -> float | None:
    """Returns the smallest detectable difference, in standard deviations of paired differences.

    The test is the two-sided paired t test at ALPHA / num_comparisons, Holm's first and hardest
    step. Its power follows the noncentral t distribution with n - 1 degrees of freedom and
    noncentrality d sqrt(n).

    Args:
        num_seeds: n; the result is None below 2.
        num_comparisons: number of comparisons in the adjustment.
        power: required probability of detection.
    """
    if num_seeds < 2:
        return None
    # power rises with the effect, so doubling brackets the answer and bisection narrows it
    low, high = 0.0, 1.0
    while power_of(high, num_seeds, num_comparisons) < power:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if power_of(middle, num_seeds, num_comparisons) < power
            else (low, middle)
        )
    return high


def power_of(effect: float, num_seeds: int, num_comparisons: int = 1) -> float:
    """Returns the probability that a paired t test detects a difference of `effect` standard
    deviations.
    """
    df, shift = num_seeds - 1, effect * math.sqrt(num_seeds)
    critical = t_quantile(1 - ALPHA / num_comparisons / 2, df)
    below = noncentral_t_cdf(-critical, df, shift)
    return 1 - noncentral_t_cdf(critical, df, shift) + below


def spread_of_differences(
    arms: Sequence[Mapping[int, float]], reference: Mapping[int, float]
) -> float | None:
    """Returns the standard deviation of paired differences, pooled over arms.

    None if no arm shares two seeds with the reference.

    Args:
        arms: seed -> value, for each arm.
        reference: seed -> value, for the arm that they are compared with.
    """
    squares, df = 0.0, 0
    # Bessel's correction per arm, since each has its own mean difference
    for arm in arms:
        differences = np.array(
            [arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())]
        )
        if len(differences) >= 2:
            squares += float(((differences - differences.mean()) ** 2).sum())
            df += len(differences) - 1
    return math.sqrt(squares / df) if df else None
