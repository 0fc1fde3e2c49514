"""Durations, counts and names of settings as people read them."""

from collections import Counter
from collections.abc import Sequence


def duration(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counted(number: int, name: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number} {name}{'' if number == 1 else 's'}"


def short_names(columns: Sequence[str]) -> list[str]:
    """The last part of each dotted name, where no other column has the same."""
    last = [name.rpartition(".")[2] for name in columns]
    counts = Counter(last)
    return [
        short if counts[short] == 1 else name for name, short in zip(columns, last, strict=True)
    ]
