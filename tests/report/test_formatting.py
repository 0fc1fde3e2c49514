import datetime
import decimal
import json
import math
from typing import Any

import pytest

from kdr.report.formatting import (
    cell_text,
    clock,
    commit_text,
    counted,
    duration,
    json_text,
    number_text,
    seeds_text,
    settings_label,
    short_names,
    spaced,
    value_label,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (0.123456, "0.1235"),
        (44.0, "44"),
        (1e-5, "1e-05"),
        (math.nan, "nan"),
        ("two\nlines\x1b[31m", "two lines [31m"),
        (["a", 1], '["a", 1]'),
        (decimal.Decimal("12"), "12"),
    ],
)
def test_a_cell_is_one_readable_line(value: object, text: str) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456789, "0.123456789"), (44.0, "44.0"), (None, ""), (False, "false"), ("a", "a")],
)
def test_a_cell_in_full_keeps_every_digit(value: object, text: str) -> None:
    assert cell_text(value, in_full=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.14159, "3.14"),
        (2000.0, "2000"),
        (6, "6"),
        (True, "true"),
        (None, "none"),
        ([], "none"),
        (["P4->P3", "P5->P4"], "P4->P3, P5->P4"),
        ((0.12345, "full"), "0.123, full"),
    ],
)
def test_a_label_is_short(value: object, text: str) -> None:
    assert value_label(value) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, ""),
        ({"distill.kdr.weight": 3.14159, "training.epochs": 6}, "weight=3.14  epochs=6"),
        ({"distill.kdr.review_links": ["P4->P3", "P5->P4"]}, "review_links=P4->P3, P5->P4"),
    ],
)
def test_settings_share_one_short_line(settings: dict[str, Any], text: str) -> None:
    assert settings_label(settings) == text


def test_json_has_no_nan_and_times_as_text() -> None:
    value = {
        "a": math.nan,
        "b": [math.inf, 1.5],
        "t": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "d": decimal.Decimal(3),
    }
    assert json.loads(json_text(value)) == {
        "a": None,
        "b": [None, 1.5],
        "t": "2026-01-01T00:00:00+00:00",
        "d": 3,
    }


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(0.123456, 3, "0.123"), (2000.0, 3, "2000"), (12.3456, 4, "12.35"), (1e20, 3, "1e+20")],
)
def test_a_number_has_so_many_digits(value: float, digits: int, text: str) -> None:
    assert number_text(value, digits) == text


@pytest.mark.parametrize(("seconds", "text"), [(40.4, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_a_duration_has_one_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (545.4, "9:05"), (3723, "1:02:03")])
def test_a_clock_shows_seconds(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 seeds"), (1, "1 seed"), (5, "5 seeds")])
def test_one_is_not_many(number: int, text: str) -> None:
    assert counted(number, "seed") == text


@pytest.mark.parametrize(("seeds", "text"), [([3], "seed 3"), ([3, 4], "seeds 3, 4")])
def test_seeds_are_listed_with_their_noun(seeds: list[int], text: str) -> None:
    assert seeds_text(seeds) == text


def test_underscores_become_spaces() -> None:
    assert spaced("stopped_early") == "stopped early"


@pytest.mark.parametrize(
    ("commit", "dirty", "text"),
    [("c1", False, "c1"), ("c1", True, "c1 (modified)"), (None, None, "unknown")],
)
def test_a_commit_shows_uncommitted_changes(
    commit: str | None, dirty: bool | None, text: str
) -> None:
    assert commit_text(commit, dirty=dirty) == text


def test_short_names_are_used_only_where_they_are_unique() -> None:
    assert short_names(["distill.kdr.weight", "a.epochs", "epochs"]) == [
        "weight",
        "a.epochs",
        "epochs",
    ]
