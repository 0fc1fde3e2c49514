import pytest

from kdr.report.tables.grid import decimals, interval, mean_sd, number, p_value


@pytest.mark.parametrize(
    ("sds", "digits", "shown"),
    [
        ([0.27], 1, "39.8 ± 0.3"),
        ([0.14], 2, "39.81 ± 0.14"),
        ([0.19], 2, "39.81 ± 0.19"),
        ([0.2], 1, "39.8 ± 0.2"),
        ([2.7], 0, "40 ± 3"),
        ([1.2], 1, "39.8 ± 1.2"),
        ([27.0], 0, "40 ± 27"),
        ([0.0031], 3, "39.812 ± 0.003"),
    ],
)
def test_the_standard_deviation_keeps_one_digit_or_two_if_it_starts_with_1(
    sds: list[float], digits: int, shown: str
) -> None:
    assert decimals(sds) == digits
    assert mean_sd(39.812, sds[0], digits) == shown


def test_a_column_has_one_number_of_decimals() -> None:
    assert decimals([0.27, None, 0.0, 0.001]) == decimals([0.19]) == 2
    assert decimals([None, 0.0]) == 1
    assert decimals([], default=3) == 3


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (1.25, False, "1.2"),
        (-0.04, False, "0.0"),
        (-0.04, True, "+0.0"),
        (0.34, True, "+0.3"),
        (None, False, ""),
        (-2.0, True, "-2.0"),
    ],
)
def test_numbers_may_be_signed_and_are_never_negative_zero(
    value: float | None, signed: bool, text: str
) -> None:
    assert number(value, 1, signed=signed) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.2, "0.200"),
        (0.0496, "0.0496"),
        (0.04999, "0.04999"),
        (0.0504, "0.050"),
        (0.05, "0.050"),
        (0.0004, "<0.001"),
        (1, "1.000"),
    ],
)
def test_rounding_never_moves_a_p_across_the_level(p: float, text: str) -> None:
    assert p_value(p) == text


def test_missing_values_are_empty() -> None:
    assert (p_value(None), interval(None, 1), mean_sd(None, None, 1)) == ("", "", "")
    assert (interval((-0.14, 0.3), 1), mean_sd(0.3, None, 2)) == ("[-0.1, 0.3]", "0.30")
