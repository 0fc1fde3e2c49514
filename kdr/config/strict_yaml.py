"""YAML without its traps: equal keys are refused, 1e-4 is a number, `off` and `no` are words, 010 is ten.

PyYAML follows YAML 1.1; this reader takes the rules of YAML 1.2's core schema for plain scalars.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from kdr.errors import ConfigError


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str) and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"a setting's name must be text, got {key!r}", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is set twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _int(_: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
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
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a file that holds a mapping.

    Raises:
        ConfigError: if the file is missing, is no YAML, sets a key twice, or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: cannot be read ({reason}). Name a study file, such as search_spaces/quickstart.yaml"
        ) from error
    content = parse_yaml(text, source=str(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold settings as `name: value` lines, got {type(content).__name__}")
    return content


def parse_yaml(text: str, *, source: str) -> Any:
    """Parses YAML text; `source` names it in errors.

    Raises:
        ConfigError: if it is no YAML or sets a key twice, with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader with stricter rules
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{where}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: is no YAML ({error})") from error
