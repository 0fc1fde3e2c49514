"""A table in no particular format: columns, cells, notes, and the rule for digits."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

Cell = str | int | float | bool | None


@dataclass(frozen=True)
class Grid:
    """Rows of cells under named columns.

    Numbers are written in full; rounded values are passed as text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    """Sentences below the table."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """(row, column) of bold cells."""
    rules: frozenset[int] = frozenset()
    """Rows with a rule above them."""


def decimals(sds: Iterable[float | None], default: int = 1) -> int:
    """Returns the decimals of a column: its standard deviation keeps one digit, or two if it
    starts with 1.

    The standard deviation of a column is the root mean square over its rows. So 39.812 with 0.27
    becomes 39.8, and with 0.14 39.81. Without one, there are `default` decimals.
    """
    known = [sd for sd in sds if sd is not None and sd > 0]
    if not known:
        return default
    sd = math.sqrt(sum(sd * sd for sd in known) / len(known))
    exponent = math.floor(math.log10(sd))
    return min(max(0, -exponent + (sd / 10.0**exponent < 2)), 6)


def number(value: float | None, digits: int, *, signed: bool = False) -> str:
    """Returns a number with `digits` decimals, never `-0.0`; empty for None."""
    if value is None:
        return ""
    rounded = round(value, digits) + 0.0  # adding 0.0 turns -0.0 into 0.0
    return f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"


def mean_sd(mean: float | None, sd: float | None, digits: int) -> str:
    """Returns `39.8 ± 0.3`; without a spread only the mean."""
    return number(mean, digits) if sd is None else f"{number(mean, digits)} ± {number(sd, digits)}"


def interval(low_high: tuple[float, float] | None, digits: int) -> str:
    """Returns `[0.3, 1.2]`; empty for None."""
    return (
        ""
        if low_high is None
        else f"[{number(low_high[0], digits)}, {number(low_high[1], digits)}]"
    )


def p_value(p: float | None, level: float = 0.05) -> str:
    """Returns a p to three decimals, or more if rounding would move it across the level."""
    if p is None:
        return ""
    if p < 0.001:
        return "<0.001"
    # 0.0496 must not be printed as 0.050; 17 digits distinguish any two floats
    digits = next(digits for digits in range(3, 20) if (round(p, digits) < level) == (p < level))
    return f"{p:.{digits}f}"
