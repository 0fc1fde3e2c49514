"""Values as text: table cells, JSON, short labels, numbers, durations, counts."""

import decimal
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

MODIFIED = " (modified)"
"""Mark of a commit whose working tree had uncommitted changes."""
_CELL_DIGITS, _LABEL_DIGITS = 4, 3
_LARGEST_WHOLE = 1e15  # above this, a float cannot represent every whole number


def cell_text(value: Any, *, in_full: bool = False) -> str:
    """Returns a value as one line of a table; None is an empty cell.

    Args:
        value: a plain value, a list or a mapping.
        in_full: keep every digit of a float. Written files need it, because `verify` compares them
            with the log; people get four digits.
    """
    if value is None:
        return ""
    # before the numbers: a bool is an int
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value) if in_full else number_text(value, _CELL_DIGITS)
    value = plain_value(value)
    text = json_text(value) if isinstance(value, list | dict) else str(value)
    # an escape sequence or a line break would damage the table around it
    return "".join(letter if letter.isprintable() else " " for letter in text)


def value_label(value: Any) -> str:
    """Returns a setting's value as a short label: floats to three digits, lists as `a, b`."""
    if isinstance(value, float):
        return number_text(value, _LABEL_DIGITS)
    if isinstance(value, list | tuple):
        return ", ".join(map(value_label, value)) or "none"
    return "none" if value is None else cell_text(value)


def settings_label(settings: Mapping[str, Any]) -> str:
    """Returns settings by the last part of their path: `weight=3.2  attention=both`."""
    return "  ".join(
        f"{path.rpartition('.')[2]}={value_label(value)}" for path, value in settings.items()
    )


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Returns a value as JSON that every reader accepts: NaN and infinities become null."""
    return json.dumps(plain_value(value), indent=indent, ensure_ascii=False, default=str)


def plain_value(value: Any) -> Any:
    """Returns a value as JSON's own types; times become ISO 8601 strings."""
    if isinstance(value, Mapping):
        return {str(name): plain_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):  # DuckDB's type for sums of integers
        return int(value) if value == value.to_integral_value() else float(value)
    return value.isoformat() if isinstance(value, datetime) else value


def number_text(value: float, digits: int) -> str:
    """Returns a number to `digits` significant digits; whole numbers keep all of theirs."""
    is_whole = float(value).is_integer() and abs(value) < _LARGEST_WHOLE
    return f"{value:.0f}" if is_whole else f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Returns a rough duration in one unit: `40 s`, `12 min`, `3.5 h`."""
    # two or three digits in any unit
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def clock(seconds: float) -> str:
    """Returns a duration to the second, for a display that counts: `9:05`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def counted(number: int, name: str) -> str:
    """Returns a count with its noun: `1 seed`, `5 seeds`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def seeds_text(seeds: Sequence[int]) -> str:
    """Returns seeds as a list with their noun: `seed 3`, `seeds 3, 4`."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def spaced(name: str) -> str:
    """Returns a name from the log or the settings in plain words: `stopped early`."""
    return name.replace("_", " ")


def commit_text(commit: str | None, *, dirty: bool | None) -> str:
    """Returns a commit, with a mark if the working tree had uncommitted changes."""
    return f"{commit or 'unknown'}{MODIFIED if dirty else ''}"


def short_names(columns: Sequence[str]) -> list[str]:
    """Returns the last part of each dotted name, or the whole name if two columns share it."""
    last = [name.rpartition(".")[2] for name in columns]
    counts = Counter(last)
    return [
        short if counts[short] == 1 else name for name, short in zip(columns, last, strict=True)
    ]
