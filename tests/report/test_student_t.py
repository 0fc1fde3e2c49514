"""Student's t, central and noncentral, against scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from kdr.report.student_t import noncentral_t_cdf, t_cdf, t_quantile

DF = st.one_of(st.integers(1, 2000), st.floats(1, 2000))


@given(t=st.floats(-200, 200).filter(lambda t: t == 0 or abs(t) > 1e-3), df=DF)
def test_the_distribution_is_that_of_scipy(t: float, df: float) -> None:
    assert t_cdf(t, df) == pytest.approx(special.stdtr(df, t), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("t", [-1e6, -7.0, -1e-9, 0.0, 1e-9, 3.0])
def test_one_degree_of_freedom_is_the_cauchy_distribution(t: float) -> None:
    assert t_cdf(t, 1) == pytest.approx(math.atan2(1, -t) / math.pi, rel=1e-12)


@given(probability=st.floats(0.001, 0.999), df=DF)
def test_the_quantile_is_that_of_scipy(probability: float, df: float) -> None:
    expected = special.stdtrit(df, probability)
    assert t_quantile(probability, df) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@given(t=st.floats(-15, 15), df=st.integers(1, 1000), shift=st.floats(0, 12))
def test_the_noncentral_distribution_is_that_of_scipy(t: float, df: int, shift: float) -> None:
    # scipy returns NaN where the probability is 0 to the last bit
    expected = special.nctdtr(df, shift, t)
    found = noncentral_t_cdf(t, df, shift)
    assert found == pytest.approx(0 if math.isnan(expected) else expected, abs=1e-9)


@given(t=st.floats(-30, 30), df=st.integers(1, 500))
def test_without_noncentrality_it_is_the_central_one(t: float, df: int) -> None:
    assert noncentral_t_cdf(t, df, 0.0) == pytest.approx(t_cdf(t, df), abs=1e-11)
