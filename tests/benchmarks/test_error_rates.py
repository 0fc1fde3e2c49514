"""The error rates of an ablation table's verdicts stay within their limits."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import kdr

STUDIES = 10_000
NOISE = 0.007
"""Three standard errors of a rate of 5 % over that many studies."""


@pytest.fixture(scope="module")
def rates() -> ModuleType:
    path = Path(kdr.__file__).parents[1] / "benchmarks" / "error_rates.py"
    spec = importlib.util.spec_from_file_location("error_rates", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seeds = pytest.mark.parametrize("n", [3, 5, 8])


@seeds
def test_the_interval_covers_the_truth_in_95_of_100_studies(rates: ModuleType, n: int) -> None:
    assert rates.coverage(STUDIES, n) == pytest.approx(0.95, abs=0.01)


@seeds
def test_at_most_one_study_in_twenty_without_effects_shows_one(rates: ModuleType, n: int) -> None:
    assert rates.family_wise_error(STUDIES, 6, n) <= 0.05 + NOISE
    # without Holm's adjustment there are more
    assert rates.family_wise_error(STUDIES, 6, n, adjust=False) > 0.1


@seeds
def test_at_most_one_study_in_twenty_calls_differences_of_the_margin_irrelevant(
    rates: ModuleType, n: int
) -> None:
    assert rates.equivalence_error(STUDIES, 6, n) <= 0.05 + NOISE
