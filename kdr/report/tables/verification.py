"""Verification of a written table: every cell is recomputed from the log."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdr.report.tables.formats import read_written, written
from kdr.report.tables.requested_table import request_from, requested_grid
from kdr.results.reader import Log

IN_FULL = ("csv", "json")
"""Formats for programs, with unrounded numbers."""


@dataclass(frozen=True)
class Difference:
    """A cell that differs from the log."""

    row: str
    """The row's first cell."""
    column: str
    written: str
    recomputed: str


@dataclass(frozen=True)
class Verification:
    """The result of verifying a table."""

    study: str
    num_cells: int
    """Number of compared cells."""
    differences: tuple[Difference, ...]


def verified(text: str, read: Callable[[str], Log]) -> Verification:
    """Recomputes every cell of a written table.

    Args:
        text: the text of the file.
        read: returns the log of a study.

    Raises:
        ConfigError: if the file has no source, or the log no longer has such a table.
    """
    table = read_written(text)
    request = request_from(table.source)
    grid = requested_grid(request, read, in_full=table.source["format"] in IN_FULL)
    expected = read_written(written(grid, table.source["format"], request.source()))
    found, wanted = _by_name(table.cells), _by_name(expected.cells)
    differences = [
        Difference(row, column, found.get(name, "nothing"), wanted.get(name, "nothing"))
        # in the order of the recomputed table, cells that only the file has at the end
        for name in {**wanted, **found}
        if not _is_equal(found.get(name), wanted.get(name))
        for row, _, column in [name]
    ]
    return Verification(request.study, len(wanted), tuple(differences))


def _by_name(cells: Sequence[Sequence[str]]) -> dict[tuple[str, int, str], str]:
    """Returns cells by (row name, its number among rows of that name, column name).

    By name, so that reordered rows are not differences.
    """
    head, *rows = cells or [()]
    seen: Counter[str] = Counter()
    named = {}
    for row in rows:
        label = row[0] if row else ""
        seen[label] += 1
        for place, text in enumerate(row):
            named[
                label, seen[label], head[place] if place < len(head) else f"column {place + 1}"
            ] = text
    return named


def _is_equal(one: str | None, other: str | None) -> bool:
    """Returns whether two cells agree; full numbers may differ by another machine's rounding."""
    if one is None or other is None or one == other:
        return one == other
    try:
        first, second = float(one), float(other)
    except ValueError:
        return False
    # rounded numbers are short, and must match exactly
    return len(other) > 12 and abs(first - second) <= 1e-9 * max(abs(first), abs(second))
