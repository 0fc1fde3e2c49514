"""What a number of seeds can decide: the smallest effect that a paired comparison finds more often
than not.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from kdr.report.effects import ALPHA
from kdr.report.student_t import noncentral_t_cdf, t_quantile

POWER = 0.8
"""Share of studies in which an effect of the smallest decidable size is found."""


def smallest_effect(
    num_seeds: int, num_comparisons: int = 1, *, power: float = POWER
) -> float | None:
    """The smallest true difference that is found, in units of the standard deviation of the paired
    differences.

    The test is the two-sided paired t test at ALPHA over the number of comparisons, Holm's first
    and hardest step. Its power is that of the noncentral t distribution with n - 1 degrees of
    freedom and noncentrality d sqrt(n).

    Args:
        num_seeds: n; None is returned below 2.
        num_comparisons: comparisons that are adjusted together.
        power: probability with which it is to be found.
    """
    if num_seeds < 2:
        return None
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
    """The probability that a paired t test finds a true difference, told in standard deviations of
    the paired differences.
    """
    df, shift = num_seeds - 1, effect * math.sqrt(num_seeds)
    critical = t_quantile(1 - ALPHA / num_comparisons / 2, df)
    below = noncentral_t_cdf(-critical, df, shift)
    return 1 - noncentral_t_cdf(critical, df, shift) + below


def spread_of_differences(
    arms: Sequence[Mapping[int, float]], reference: Mapping[int, float]
) -> float | None:
    """The standard deviation of paired differences, pooled over arms; None where no arm shares two
    seeds with the reference.

    Args:
        arms: seed -> value of each arm.
        reference: seed -> value of the arm that they are compared with.
    """
    squares, df = 0.0, 0
    for arm in arms:
        differences = np.array(
            [arm[seed] - reference[seed] for seed in sorted(arm.keys() & reference.keys())]
        )
        if len(differences) >= 2:
            squares += float(((differences - differences.mean()) ** 2).sum())
            df += len(differences) - 1
    return math.sqrt(squares / df) if df else None
