"""Values as text."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.canonical import canonical_json, value_text

plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(plain_values)
def test_values_are_kept(content: Any) -> None:
    assert json.loads(canonical_json(content)) == content


@given(st.dictionaries(st.text(), st.integers(-(2**53), 2**53)), st.randoms())
def test_order_and_number_format_make_no_difference(content: dict[str, int], chance: Any) -> None:
    respelled = {
        name: float(content[name]) for name in chance.sample(sorted(content), len(content))
    }
    assert canonical_json(respelled) == canonical_json(content)


def test_true_and_one_differ_and_tuples_are_lists() -> None:
    assert canonical_json((True, 1, 1.0, -0.0)) == "[true,1,1,0]"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([value])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("é", "é"),
        (["é", 1], '["é", 1]'),
        (True, "true"),
        (None, "null"),
        ({"b": 1, "a": 2}, '{"a": 2, "b": 1}'),
    ],
)
def test_a_value_reads_as_in_its_file(value: object, text: str) -> None:
    assert value_text(value) == text
