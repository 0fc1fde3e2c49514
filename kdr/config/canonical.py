"""One JSON text for equal plain values, however they were written."""

import json
from collections.abc import Mapping
from typing import Any


def canonical_json(content: Any) -> str:
    """The JSON text of plain values: sorted names, no spaces, whole numbers without a decimal
    point.

    So 1 and 1.0 are one value, 1 and true are two.

    Raises:
        ValueError: if a number is infinite or NaN.
    """
    return json.dumps(_canonical(content), sort_keys=True, separators=(",", ":"), allow_nan=False)


def value_text(value: Any) -> str:
    """Returns a setting's value as people read it: texts as they are, anything else as JSON."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _canonical(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _canonical(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
