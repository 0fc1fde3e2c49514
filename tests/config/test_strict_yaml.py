"""Reading YAML without its traps."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kdr.config.strict_yaml import parse_yaml, read_yaml
from kdr.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("2.0e-3", 2e-3),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("010", 10),
        ("-010", -10),
        ("+3", 3),
        ("off", "off"),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        ("1_000", "1_000"),
        ("12:30:00", "12:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("1.2.3", "1.2.3"),
        ("P4->P3", "P4->P3"),
        ("=", "="),
        ("'1'", "1"),
        ("!!str 1", "1"),
    ],
)
def test_plain_scalars_are_what_they_look_like(text: str, value: Any) -> None:
    read = parse_yaml(text, source="study.yaml")
    assert read == value
    assert type(read) is type(value)


NAMES = "abcdefghi"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise(NAMES)
)
"""Nine lines that expand to 9^9 words."""
MERGE_BOMB = "a: &a {x: 1, y: 2}\n" + "\n".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}" for before, name in pairwise(NAMES)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "^study.yaml, line 2, column 1: 'a' is set twice$"),
        ("a: {b: 1, c: 2, b: 3}", "^study.yaml, line 1, column 17: 'b' is set twice$"),
        ("a: 1\n1: 2", "^study.yaml, line 2, column 1: a setting's name must be text, got 1$"),
        ("true: 2", "a setting's name must be text, got true"),
        ("[a]: 2", "a setting's name must be text, got a list or a group"),
        ("a: b: c", "^study.yaml, line 1, column 5: mapping values are not allowed here$"),
        ("a: [1, 2", "^study.yaml, line 1, column 9: "),
        (
            "a:\n\t- 1",
            "^study.yaml, line 2, column 1: found character '\\\\t' that cannot start any token",
        ),
        ("--- a\n--- b", "^study.yaml, line 2, column 1: but found another document"),
        ("a: *b", "^study.yaml, line 1, column 4: found undefined alias 'b'"),
        (
            "a: !!python/object:os.system x",
            "^study.yaml, line 1, column 4: could not determine a constructor",
        ),
        ("a: !!timestamp 2020-01-01", "could not determine a constructor for the tag .*timestamp"),
        ("a: !!binary aGVsbG8=", "could not determine a constructor for the tag .*binary"),
        ("a: !!set {b, c}", "could not determine a constructor for the tag .*set"),
        ("a: !!int 0x10", "^study.yaml: cannot be read as settings .*0x10"),
        ("a: !!bool maybe", "^study.yaml: cannot be read as settings .*maybe"),
        ("a: &a [*a]", "^study.yaml: cannot be read as settings .*[Cc]ircular"),
        ("a: " + "9" * 5000, "^study.yaml: cannot be read as settings .*4300 digits"),
        ("a: \0", "^study.yaml: cannot be read as settings .*special characters are not allowed"),
        (
            BOMB,
            "^study.yaml, line 1, column 1: aliases must not expand to more than 100,000 values$",
        ),
        (
            MERGE_BOMB,
            "^study.yaml, line 1, column 1: aliases must not expand to more than 100,000 values$",
        ),
        ("[" * 1500, "^study.yaml: cannot be read as settings .*recursion"),
    ],
)
def test_invalid_yaml_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text, source="study.yaml")


def test_anchors_and_merging_work_and_explicit_keys_win() -> None:
    text = "a: &a {x: 1, y: 2}\none: {b: &b {<<: *a, x: 3}}\nc: {<<: *b, z: 4}"
    assert parse_yaml(text, source="") == {
        "a": {"x": 1, "y": 2},
        "one": {"b": {"x": 3, "y": 2}},
        "c": {"x": 3, "y": 2, "z": 4},
    }


def test_a_duplicate_key_beside_a_merge_is_refused() -> None:
    with pytest.raises(ConfigError, match="line 2, column 19: 'x' is set twice"):
        parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2, x: 3}", source="s")


plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="ascii")), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(plain_values)
def test_every_plain_value_written_as_json_reads_back(value: Any) -> None:
    assert parse_yaml(json.dumps(value), source="") == value


@given(plain_values)
def test_every_plain_value_written_by_pyyaml_reads_back(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value), source="") == value


def test_a_missing_file_is_named_with_a_fix(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"study\.yaml: cannot be read \(No such file or directory\)\. Pass a study file",
    ):
        read_yaml(tmp_path / "study.yaml")


def test_a_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"study\.yaml: cannot be read \(not UTF-8 text\)"):
        read_yaml(tmp_path / "study.yaml")


@pytest.mark.parametrize(("text", "kind"), [("- a", "list"), ("", "NoneType"), ("word", "str")])
def test_a_file_without_settings_is_named(text: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(
        ConfigError, match=f"must contain settings as `name: value` lines, got {kind}"
    ):
        read_yaml(tmp_path / "study.yaml")
