"""Reads YAML without its traps: duplicate keys are errors, 1e-4 is a number, `off` is text.

PyYAML follows YAML 1.1, where `off` and `no` are false, 010 is 8 and 1e-4 is text. This reader
follows the core schema of YAML 1.2 for plain scalars.
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from kdr.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_NAMES = (f"{_TAG}str", f"{_TAG}merge")
MAX_VALUES = 100_000
"""Maximum number of values in a file with its aliases expanded: ten lines of aliases to aliases can
expand to more values than fit in memory."""
_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map")


class _Loader(yaml.SafeLoader):
    # Only the types of JSON: no setting takes dates, bytes or sets.
    yaml_constructors = {
        tag: make
        for tag, make in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.removeprefix(_TAG) in _PLAIN
    }
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Checked here and not in the constructor: by then, merging (`<<: *defaults`) has added keys
        # that may legally occur twice.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in _NAMES:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"a setting's name must be text, got {_written(key)}",
                    key.start_mark,
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' is set twice", key.start_mark
                )
            seen.add(key.value)
        return node


def _written(node: yaml.Node) -> str:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else "a list or a group"


def _int(_: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_Loader.add_constructor(f"{_TAG}int", _int)
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
    ("merge", r"^(?:<<)$", ["<"]),
):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(_pattern), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML file whose content is a mapping.

    Raises:
        ConfigError: if the file is missing, is not YAML, sets a key twice, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: cannot be read ({reason}). Pass a study file, such as "
            "search_spaces/quickstart.yaml"
        ) from error
    content = parse_yaml(text, source=str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: must contain settings as `name: value` lines, got {type(content).__name__}"
        )
    return content


def parse_yaml(text: str, *, source: str) -> Any:
    """Parses YAML text.

    Args:
        text: the YAML.
        source: name of the text in errors.

    Raises:
        ConfigError: if it is not YAML or sets a key twice, with line and column.
    """
    try:
        content = _load(text)
        json.dumps(content)  # fails on a list that contains itself, which is valid YAML
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"{source}: cannot be read as settings ({error})") from error
    return content


def _load(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _num_values(node, {}) > MAX_VALUES:
            rule = f"aliases must not expand to more than {MAX_VALUES:,} values"
            raise yaml.constructor.ConstructorError(None, None, rule, node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values in a node with its aliases expanded.

    Each node is visited once, however many aliases refer to it, so this is fast for a file that
    would not fit in memory if it were expanded.
    """
    if id(node) not in known:
        known[id(node)] = 0  # ends the recursion of a node that contains itself; refused later
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(node)]
