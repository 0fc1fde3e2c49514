"""Changes of settings by path."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.overrides import changed, parse_override, value_at
from kdr.errors import ConfigError

names = st.text("abc", min_size=1, max_size=2)
groups = st.recursive(
    st.dictionaries(names, st.integers(), max_size=3),
    lambda inner: st.dictionaries(names, inner, max_size=3),
)


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("training.epochs=24", "training.epochs", 24),
        (" training.lr = 1e-4 ", "training.lr", 1e-4),
        (
            "distill.kdr.review_links=[P4->P3, P5->P4]",
            "distill.kdr.review_links",
            ["P4->P3", "P5->P4"],
        ),
        ("data.resize={square_px: 96}", "data.resize", {"square_px": 96}),
        ("teacher.weights=a=b.pt", "teacher.weights", "a=b.pt"),
        ("distill.kdr=", "distill.kdr", None),
        ("distill.kdr.masks=none", "distill.kdr.masks", "none"),
    ],
)
def test_an_override_is_a_path_and_a_yaml_value(text: str, path: str, value: Any) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["training.epochs", "=3", "training..epochs=3", ".a=3", ""])
def test_an_override_without_a_path_or_an_equals_sign_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"^--set: must be path=value, got '.*'\. For example: --set training\.epochs=24$",
    ):
        parse_override(text)


def test_invalid_yaml_in_an_override_is_reported_with_its_path() -> None:
    with pytest.raises(ConfigError, match=r"^--set data\.resize, line 1, column"):
        parse_override("data.resize={square_px")


@given(groups, st.lists(names, min_size=1, max_size=3), st.integers())
def test_a_change_is_read_back_and_leaves_the_original_alone(
    settings: dict[str, Any], parts: list[str], value: int
) -> None:
    path, before = ".".join(parts), repr(settings)
    try:
        result = changed(settings, {path: value})
    except ConfigError:
        return  # the path goes through a number
    assert value_at(result, path) == value
    assert repr(settings) == before
    for name in settings:
        if name != parts[0]:
            assert result[name] == settings[name]


def test_missing_groups_are_created() -> None:
    assert changed({"distill": None}, {"distill.kdr.weight": 5}) == {
        "distill": {"kdr": {"weight": 5}}
    }


def test_a_path_through_a_value_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^training\.lr\.peak: 'lr' must be a group of settings, got 0\.1$"
    ):
        changed({"training": {"lr": 0.1}}, {"training.lr.peak": 1})


def test_existing_names_with_dots_are_found() -> None:
    search = {"parameters": {"distill.kdr.weight": {"float": [1, 2]}}}
    expected = {"parameters": {"distill.kdr.weight": {"float": [1, 9]}}}
    assert changed(search, {"parameters.distill.kdr.weight.float": [1, 9]}) == expected


@pytest.mark.parametrize(
    ("path", "value"),
    [("a.b", 1), ("a", {"b": 1}), ("a.c", "none"), ("a.b.c", "none"), ("x", "none")],
)
def test_a_value_is_found_at_its_path(path: str, value: Any) -> None:
    assert value_at({"a": {"b": 1}}, path, "none") == value
