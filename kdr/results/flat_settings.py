"""Settings of a trial by their dotted path, as the tables show them: `distill.kdr.weight`."""

import functools
import json
from collections.abc import Mapping
from typing import Any


@functools.lru_cache(maxsize=4096)
def flat_settings(config: str) -> Mapping[str, Any]:
    """The settings of a trial by dotted path; do not change the result, it is shared.

    Args:
        config: a TrialConfig as JSON.
    """
    flat: dict[str, Any] = {}
    _flatten(json.loads(config), "", flat)
    return flat


def canonical(value: Any) -> Any:
    """A setting's value such that equal settings compare and group as equal: lists and groups as
    JSON text.
    """
    return (
        json.dumps(value, ensure_ascii=False, sort_keys=True)
        if isinstance(value, list | dict)
        else value
    )


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    if not isinstance(value, dict) or not value:
        flat[path] = value
        return
    for name, inner in value.items():
        _flatten(inner, f"{path}.{name}" if path else name, flat)
