"""Settings by dotted path."""

import json
from typing import Any

import pytest

from kdr.results.flat_settings import canonical, flat_settings


def test_settings_are_named_by_path() -> None:
    config = json.dumps(
        {
            "seed": 1,
            "distill": {"kdr": {"weight": 2.0, "links": ["a", "b"]}, "fgd": {}},
            "teacher": None,
        }
    )
    assert flat_settings(config) == {
        "seed": 1,
        "distill.kdr.weight": 2.0,
        "distill.kdr.links": ["a", "b"],
        "distill.fgd": {},
        "teacher": None,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["full", 4], '["full", 4]'),
        ([], "[]"),
        ({"b": 1, "a": [2]}, '{"a": [2], "b": 1}'),
        ("both", "both"),
        (2, 2),
        (None, None),
    ],
)
def test_lists_and_groups_become_text_and_plain_values_stay(value: Any, text: Any) -> None:
    assert canonical(value) == text
