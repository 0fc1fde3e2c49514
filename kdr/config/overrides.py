"""Changes of settings by path, such as `distill.kdr.weight=5` on the command line."""

from collections.abc import Mapping
from typing import Any

from kdr.config.strict_yaml import parse_yaml
from kdr.errors import ConfigError


def parse_override(text: str) -> tuple[str, Any]:
    """Splits `path=value` and reads the value as YAML.

    Raises:
        ConfigError: if `=` or the path is missing.
    """
    path, equals, value = text.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigError(
            f"--set: must be path=value, got {text!r}. For example: --set training.epochs=24"
        )
    return path.strip(), parse_yaml(value, source=f"--set {path.strip()}")


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested settings with the values at some dotted paths replaced. Missing
    groups are created.

    A name that the group already has may contain dots, as the names of search parameters do.

    Raises:
        ConfigError: if a path goes through a value that is not a group.
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
    """Splits a path after the longest name that the group has, else after its first part. The rest
    may be empty.
    """
    # `search.parameters` has names such as `distill.kdr.weight`: the path
    # `parameters.distill.kdr.weight.float` must find that name instead of creating a group
    # `distill`
    parts = path.split(".")
    known = [size for size in range(len(parts), 0, -1) if ".".join(parts[:size]) in group]
    size = known[0] if known else 1
    return ".".join(parts[:size]), ".".join(parts[size:])


def value_at(settings: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Returns the value at a dotted path of nested settings, or `default` if there is none."""
    value: Any = settings
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value
