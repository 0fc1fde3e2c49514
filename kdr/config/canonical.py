"""Plain values as text: canonical JSON for comparison, readable text for messages."""

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(content: Any) -> str:
    """Returns the JSON text of plain values: names sorted, no spaces, 1.0 written as 1.

    So 1 and 1.0 have the same text; 1 and true do not.

    Raises:
        ValueError: if a number is infinite or NaN.
    """
    return json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)


def value_text(value: Any) -> str:
    """Returns a setting's value as readable text: strings unchanged, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
