"""Student's t distribution, central and noncentral, without scipy.

`scipy.special` has the same functions and is the oracle of the tests. Importing it takes as long as
the rest of `kdr table` (scipy 1.18 also imports all of numpy, including f2py), and a table needs
one number per row. This module can be deleted once `import scipy.special` is cheap.
"""

import math
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

_MOST_TERMS = 10_000
"""More terms than the continued fraction needs: the number of terms grows with the root of df."""
_NUM_PANELS, _NODES_PER_PANEL = 8, 24
_normal_cdf = np.vectorize(NormalDist().cdf, otypes=[float])


def t_cdf(t: float, df: float) -> float:
    """Returns P(T <= t) of Student's t.

    P(|T| > |t|) is the regularised incomplete beta function I_x(df / 2, 1 / 2) at
    x = df / (df + t^2) (Abramowitz and Stegun, 26.7.1 and 26.5.27).
    """
    x, rest = df / (df + t * t), t * t / (df + t * t)
    tail = _incomplete_beta(df / 2, 0.5, x, rest) / 2
    return 1 - tail if t > 0 else tail


@cache
def t_quantile(probability: float, df: float) -> float:
    """Returns t with P(T <= t) = probability, by bisection down to neighbouring floats."""
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < probability:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_cdf(middle, df) < probability else (low, middle)
    return high


def noncentral_t_cdf(t: float, df: int, shift: float) -> float:
    """Returns P(T <= t) of the noncentral t with noncentrality `shift`.

    T = (Z + shift) / S for a standard normal Z and an independent S, where df S^2 is chi-squared
    with df degrees of freedom. So the probability is the mean of Phi(t S - shift) over S: a smooth
    integral, which Gauss-Legendre quadrature gives to about 1e-13.
    """
    width = 12 / math.sqrt(2 * df)  # the standard deviation of S is about 1 / sqrt(2 df)
    low, high = max(0.0, 1 - width), 1 + width
    shares, weights = _quadrature()
    s = low + (high - low) * shares
    log_density = (
        math.log(2)
        + df / 2 * math.log(df / 2)
        - math.lgamma(df / 2)
        + (df - 1) * np.log(s)
        - df * s * s / 2
    )
    values = _normal_cdf(t * s - shift) * np.exp(log_density)
    return float((high - low) * (weights @ values))


@cache
def _quadrature() -> tuple[Any, Any]:
    """Returns nodes and weights on [0, 1], in panels: a rule of n nodes costs n^3 to set up.

    The nodes u are squared, so that they are dense near 0, where Phi(t S - shift) is steep for a
    large t.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    starts = np.arange(_NUM_PANELS)[:, None] / _NUM_PANELS
    in_panel = (nodes + 1) / 2 / _NUM_PANELS
    u = (starts + in_panel).ravel()
    return u * u, 2 * u * np.tile(weights / 2 / _NUM_PANELS, _NUM_PANELS)


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Returns I_x(a, b). `rest` is 1 - x, passed in because computing it here would lose digits."""
    if x == 0 or rest == 0:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # where the continued fraction converges slowly
        return 1 - _incomplete_beta(b, a, rest, x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    power = math.exp(a * math.log(x) + b * math.log(rest) - log_beta)
    return power / a * _continued_fraction(a, b, x)


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Returns the continued fraction of I_x(a, b), by Lentz's method (A. and S., 26.5.8)."""
    numerator, denominator = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = denominator
    for m in range(1, _MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            denominator = 1 / (1 + term * denominator)
            numerator = 1 + term / numerator
            value *= numerator * denominator
        if abs(value - before) <= 1e-16 * abs(value):
            break
    return value
