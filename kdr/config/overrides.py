"""Settings changed by path: `distill.kdr.weight=5` of the command line, and the draws of a search."""

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
        raise ConfigError(f"--set: needs path=value, got {text!r}. For example --set training.epochs=24")
    return path.strip(), parse_yaml(value, source=f"--set {path.strip()}")


def changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested settings with the values at some dotted paths replaced; groups on the way are made where missing."""
    result = dict(settings)
    for path, value in changes.items():
        group = result
        *parents, name = path.split(".")
        for parent in parents:
            inner = group.get(parent)
            if inner is not None and not isinstance(inner, Mapping):
                raise ConfigError(f"{path}: '{parent}' is no group of settings, got {inner!r}")
            group[parent] = dict(inner or {})
            group = group[parent]
        group[name] = value
    return result


def value_at(settings: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested settings, `default` where there is none."""
    value: Any = settings
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return default
        value = value[name]
    return value
