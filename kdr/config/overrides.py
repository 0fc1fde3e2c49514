"""Settings changed by path: `distill.kdr.weight=5` of the command line, and the draws of a
search.
"""

from collections.abc import Mapping
from typing import Any

from kdr.config.strict_yaml import parse_yaml
from kdr.errors import ConfigError


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `path=value`; the value is read as YAML.

    Raises:
        ConfigError: if there is no `=` or no path.
    """
    path, equals, value = text.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigError(
            f"--set: needs path=value, got {text!r}. For example --set training.epochs=24"
        )
    return path.strip(), parse_yaml(value, source=f"--set {path.strip()}")


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with the values at some dotted paths replaced; groups on the way
    are made where missing.

    Names that have dots themselves, as the parameters of a search do, are found where they are
    there already.

    Raises:
        ConfigError: if a path leads into a value that is no group.
    """
    result = dict(settings)
    for path, value in changes.items():
        group, (name, rest) = result, _first_name(result, path)
        while rest:
            inner = group.get(name)
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(f"{path}: '{name}' must be a group of settings, got {inner!r}")
            group[name] = dict(inner or {})
            group = group[name]
            name, rest = _first_name(group, rest)
        group[name] = value
    return result


def _first_name(group: Mapping[str, Any], path: str) -> tuple[str, str]:
    """Splits a path behind the longest name that the group has, or behind the first dot; the rest
    may be empty.
    """
    parts = path.split(".")
    known = [size for size in range(len(parts), 0, -1) if ".".join(parts[:size]) in group]
    size = known[0] if known else 1
    return ".".join(parts[:size]), ".".join(parts[size:])


def value_at(settings: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested settings, `default` where there is none."""
    value: Any = settings
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value
