"""Sums of loss terms over an epoch, on the device, so that no step waits for a number."""

import math

from torch import Tensor

from kdr.errors import TrialFailure
from kdr.training.distilled_student import StepLosses
from kdr.training.ranks import ALONE, Ranks


class LossSums:
    """Sums of every loss term over an epoch, unweighted and weighted, and of their units.

    Args:
        ranks: the processes that train together; all of them get the same means and failures.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks
        self._plain: dict[str, Tensor] = {}
        self._weighted: dict[str, Tensor] = {}
        self._units: dict[str, float] = {}
        self._count = 0.0

    def add(self, losses: StepLosses, weight: float = 1.0) -> None:
        """Adds the terms of one step, or of one pass times its weight within the step.

        The weights of a step's passes add up to 1.
        """
        self._count += weight
        terms = [(name, value, 1.0) for name, value in losses.detection.items()]
        terms += [
            (term.name, term.value, term.coefficient)
            for of_method in losses.terms.values()
            for term in of_method
        ]
        for name, value, coefficient in terms:
            # double: a float32 sum over 100,000 steps loses digits
            value = value.detach().double() if weight == 1 else weight * value.detach().double()
            self._plain[name] = self._plain.get(name, 0) + value
            self._weighted[name] = self._weighted.get(name, 0) + coefficient * value
        for name, unit in losses.units.items():
            self._units[name] = self._units.get(name, 0.0) + weight * unit

    def means(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns the means over steps and ranks: unweighted, and as they entered the total."""
        plain, weighted = (
            {name: float(value) / self._count for name, value in sums.items()}
            for sums in (self._plain, self._weighted)
        )
        of_ranks = self._ranks.gathered((plain, weighted))
        return _mean([plain for plain, _ in of_ranks]), _mean(
            [weighted for _, weighted in of_ranks]
        )

    def mean_units(self) -> dict[str, float]:
        """Returns the means of the weights' units over steps and ranks."""
        return _mean(
            self._ranks.gathered({name: value / self._count for name, value in self._units.items()})
        )

    def check_finite(self, epoch: int, step: int) -> None:
        """Raises TrialFailure if any term has been NaN or infinite since the epoch began.

        Every rank raises if any has such a term: a rank that continued would wait for the others.
        """
        # checking the sums suffices, because they stay NaN or infinite
        bad = [name for name, value in self._plain.items() if not math.isfinite(float(value))]
        if bad := list(
            dict.fromkeys(name for names in self._ranks.gathered(bad) for name in names)
        ):
            raise TrialFailure(
                "non_finite_loss",
                f"{', '.join(bad)} is NaN or infinite in epoch {epoch}, by step {step}",
            )


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean over ranks of each named value."""
    return {name: sum(of_rank[name] for of_rank in values) / len(values) for name in values[0]}
