"""A trial's settings by dotted path, such as `distill.kdr.weight`, as in the tables."""

import functools
import json
from collections.abc import Mapping
from typing import Any


@functools.lru_cache(maxsize=4096)
def flat_settings(config: str) -> Mapping[str, Any]:
    """Returns the settings of a trial by dotted path. The result is cached: do not change it.

    Args:
        config: a TrialConfig as JSON.
    """
    flat: dict[str, Any] = {}
    _flatten(json.loads(config), "", flat)
    return flat


def canonical(value: Any) -> Any:
    """Returns a setting's value, with lists and groups as JSON text, so that equal settings compare
    and hash as equal.
    """
    return (
        json.dumps(value, ensure_ascii=False, sort_keys=True)
        if isinstance(value, list | dict)
        else value
    )


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    # an empty group stays a value: `distill: {}` is a setting, and it would vanish otherwise
    if not isinstance(value, dict) or not value:
        flat[path] = value
        return
    for name, inner in value.items():
        _flatten(inner, f"{path}.{name}" if path else name, flat)
