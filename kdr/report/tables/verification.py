"""Whether a written table says what the log says: every cell computed again."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdr.report.tables.formats import read_written, written
from kdr.report.tables.requested_table import request_from, requested_grid
from kdr.results.reader import Log

IN_FULL = ("csv", "json")
"""Formats for programs, with numbers that are not rounded."""


@dataclass(frozen=True)
class Difference:
    """One cell that is not what the log gives."""

    row: str
    """The row's first cell."""
    column: str
    written: str
    recomputed: str


@dataclass(frozen=True)
class Verification:
    """What became of a written table."""

    study: str
    num_cells: int
    """Cells that were compared."""
    differences: tuple[Difference, ...]


def verified(text: str, read: Callable[[str], Log]) -> Verification:
    """Computes every cell of a written table again.

    Args:
        text: of the file.
        read: gives the log of a study.

    Raises:
        ConfigError: if the file does not say where it comes from, or the log has no such table any
            more.
    """
    table = read_written(text)
    request = request_from(table.source)
    grid = requested_grid(request, read, in_full=table.source["format"] in IN_FULL)
    expected = read_written(written(grid, table.source["format"], request.source()))
    found, wanted = _by_name(table.cells), _by_name(expected.cells)
    differences = [
        Difference(row, column, found.get(name, "nothing"), wanted.get(name, "nothing"))
        for name in {**wanted, **found}
        if not _is_equal(found.get(name), wanted.get(name))
        for row, _, column in [name]
    ]
    return Verification(request.study, len(wanted), tuple(differences))


def _by_name(cells: Sequence[Sequence[str]]) -> dict[tuple[str, int, str], str]:
    """Cells by the name of their row, its number among rows of that name, and the name of their
    column.
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
    """Whether two cells say the same; numbers in full may differ by what another machine's rounding
    does.
    """
    if one is None or other is None or one == other:
        return one == other
    try:
        first, second = float(one), float(other)
    except ValueError:
        return False
    # rounded numbers have few digits, of which none may change
    return len(other) > 12 and abs(first - second) <= 1e-9 * max(abs(first), abs(second))
