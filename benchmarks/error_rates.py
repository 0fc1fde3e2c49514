"""Measures how often the verdicts of an ablation table are wrong, on simulated studies.

    python benchmarks/error_rates.py

The functions that judge real studies judge the simulated ones. A study has a baseline and arms with
normal values that correlate across arms, like trials with the same seed. For each number of seeds
the script prints how often the 95 % interval covers the true difference; how often a study without
effects shows one in any arm (family-wise error); and how often any arm is called "no relevant
effect" although every true difference is exactly the margin.
"""

import argparse
from typing import Any

import numpy as np

from kdr.report.effects import ALPHA, equivalence_p, half_width, holm, two_sided_p

SD, CORRELATION, MARGIN = 0.004, 0.5, 0.005
"""Spread of AP over seeds, correlation of two arms, margin: as in small detection studies."""


def simulated(
    num_studies: int, num_arms: int, n: int, difference: float, *, seed: int = 0
) -> tuple[Any, Any]:
    """Returns estimates and standard errors of paired differences to the baseline.

    Args:
        num_studies: independent studies.
        num_arms: arms without the baseline, all with the same true difference to it.
        n: number of seeds.
        difference: the true difference.
        seed: of the simulation.

    Returns:
        Two arrays (studies, arms).
    """
    generator = np.random.default_rng(seed)
    # the part that trials of one seed have in common cancels out in their difference
    shared = generator.normal(scale=SD * CORRELATION**0.5, size=(num_studies, 1, n))
    own = generator.normal(scale=SD * (1 - CORRELATION) ** 0.5, size=(num_studies, 1 + num_arms, n))
    values = shared + own
    differences = values[:, 1:] + difference - values[:, :1]
    return differences.mean(-1), differences.std(-1, ddof=1) / n**0.5


def coverage(num_studies: int, n: int) -> float:
    """Returns the share of 95 % intervals that cover the true difference."""
    means, errors = simulated(num_studies, 1, n, 0.003, seed=n)
    return float((np.abs(means - 0.003) <= half_width(errors, n - 1)).mean())


def family_wise_error(num_studies: int, num_arms: int, n: int, *, adjust: bool = True) -> float:
    """Returns the share of studies without effects in which an arm is said to help or to hurt."""
    means, errors = simulated(num_studies, num_arms, n, 0.0, seed=n)
    ps = two_sided_p(means, errors, n - 1)
    return float(((holm(ps) if adjust else ps) < ALPHA).any(-1).mean())


def equivalence_error(num_studies: int, num_arms: int, n: int) -> float:
    """Returns the share of studies in which any arm is called "no relevant effect" by mistake.

    All true differences are exactly the margin, where this error is most frequent.
    """
    means, errors = simulated(num_studies, num_arms, n, MARGIN, seed=n)
    return float((holm(equivalence_p(means, errors, n - 1, MARGIN)) < ALPHA).any(-1).mean())


def main() -> None:
    """Prints all rates in percent."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=10_000, help="number of simulated studies")
    parser.add_argument("--arms", type=int, default=6, help="arms per study, without the baseline")
    studies, arms = vars(parser.parse_args()).values()
    print(f"{studies} studies of {arms} arms and a baseline, in percent")
    print(
        f"{'seeds':>5}{'95 % interval covers':>22}{'any false effect':>18}"
        f"{'without Holm':>14}{'false no relevant effect':>26}"
    )
    for n in (3, 5, 8):
        print(
            f"{n:>5}{100 * coverage(studies, n):>22.1f}"
            f"{100 * family_wise_error(studies, arms, n):>18.1f}"
            f"{100 * family_wise_error(studies, arms, n, adjust=False):>14.1f}"
            f"{100 * equivalence_error(studies, arms, n):>26.1f}"
        )


if __name__ == "__main__":
    main()
