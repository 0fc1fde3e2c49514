"""Main effects and two-factor interactions of a factorial, by least squares."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdr.report.effects import Effect, sign_flip_p

Step = tuple[str, str, str]
"""A factor, one of its levels, and the level it is compared with."""


@dataclass(frozen=True)
class Contrast:
    """A main effect (one level against its factor's reference) or a two-factor interaction."""

    steps: tuple[Step, ...]
    """One step for a main effect, two for an interaction."""
    effect: Effect | None
    """None if the missing cells are needed to estimate it."""

    @property
    def name(self) -> str:
        """Name in a table, such as `links: all - none x attention: both - none`."""
        return " x ".join(
            f"{factor}: {level} - {reference}" for factor, level, reference in self.steps
        )


def factorial_effects(
    levels: Mapping[str, Sequence[str]], values: Mapping[tuple[str, ...], Sequence[float]]
) -> list[Contrast]:
    """Estimates main effects, then two-factor interactions, from cells with the same seeds.

    The model is y = seed + main effects + two-factor interactions + error. A main effect is the
    mean difference between a level and the reference level, over all levels of the other factors.
    An interaction is half the change that one step makes to the effect of the other. With two
    levels each, both are twice the least-squares coefficient of the +-1 coding (Box, Hunter and
    Hunter 2005, chapter 5). A factor with more levels has one contrast per non-reference level.

    Args:
        levels: factor -> its levels, the reference first.
        values: a level for each factor -> (n,) values, same seeds in the same order. Cells may be
            missing.
    """
    cells = [cell for cell in itertools.product(*levels.values()) if cell in values]
    y = np.array([values[cell] for cell in cells], float)  # [cells, n]
    n = y.shape[1]
    model = _coded(levels, cells)
    rank = int(np.linalg.matrix_rank(model))
    inverse = np.linalg.pinv(model)
    # every seed is a block with its own mean; the model's constant is among these n means, so the
    # model takes only rank - 1 more degrees of freedom
    deviations = y - y.mean(axis=0)
    residuals = deviations - model @ (inverse @ deviations.mean(axis=1, keepdims=True))
    df = y.size - n - (rank - 1)
    is_rounding = not np.abs(residuals).max() > 1e-12 * np.abs(y).max()
    variance = None if df <= 0 or is_rounding else float((residuals**2).sum()) / df
    return [
        Contrast(steps, _effect(_weights(levels, steps, model, inverse), y, variance, df))
        for steps in _steps(levels)
    ]


def _effect(weights: Any, y: Any, variance: float | None, df: int) -> Effect | None:
    """Returns the effect of (cells,) weights on (cells, n) values; None without weights."""
    if weights is None:
        return None
    num_cells, n = y.shape
    per_seed = weights @ y  # [n]
    mean, brings = float(per_seed.mean()), num_cells - 1
    if variance is None:
        return Effect(n, mean, df_per_seed=brings)
    flips = sign_flip_p(per_seed) if n > 1 else None
    return Effect(n, mean, math.sqrt(variance * float(weights @ weights) / n), df, brings, flips)


def _coded(levels: Mapping[str, Sequence[str]], cells: Sequence[tuple[str, ...]]) -> Any:
    """Returns the (cells, columns) model: a constant, main effects, two-factor products.

    Two levels are coded -1 and +1. More levels get one column each, except the reference, which
    is -1 in all of them.
    """
    factors = []
    for index, names in enumerate(levels.values()):
        chosen = np.array([[cell[index] == name for name in names] for cell in cells], float)
        factors.append(chosen[:, 1:] - chosen[:, :1])
    pairs = itertools.combinations(factors, 2)
    products = [
        (first[:, :, None] * second[:, None, :]).reshape(len(cells), -1) for first, second in pairs
    ]
    return np.hstack([np.ones((len(cells), 1)), *factors, *products])


def _steps(levels: Mapping[str, Sequence[str]]) -> Iterator[tuple[Step, ...]]:
    """Yields the steps of each estimate: main effects, then interactions."""
    steps = {
        factor: [(factor, level, names[0]) for level in names[1:]]
        for factor, names in levels.items()
    }
    for factor in levels:
        yield from ((step,) for step in steps[factor])
    for first, second in itertools.combinations(levels, 2):
        yield from itertools.product(steps[first], steps[second])


def _weights(
    levels: Mapping[str, Sequence[str]], steps: Sequence[Step], model: Any, inverse: Any
) -> Any:
    """Returns the (cells,) weights that estimate a contrast from the cells that exist.

    None if these cells do not determine it.
    """
    whole = list(itertools.product(*levels.values()))
    signs = np.ones(len(whole))
    for factor, level, reference in steps:
        index = list(levels).index(factor)
        signs *= np.array([{level: 1.0, reference: -1.0}.get(cell[index], 0.0) for cell in whole])
    wanted = (signs * 2 / np.abs(signs).sum()) @ _coded(levels, whole)
    weights = wanted @ inverse
    # a contrast is estimable if it is a combination of the model's rows
    return weights if np.allclose(weights @ model, wanted, atol=1e-9) else None
