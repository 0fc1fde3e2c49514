"""Tables on standard output: drawn on a terminal, plain lines elsewhere, CSV or JSON."""

import csv
import decimal
import io
import sys
from collections.abc import Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kdr.report.formatting import cell_text, json_text, plain_value, short_names
from kdr.training.findings import Finding

Format = Literal["table", "csv", "json"]


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    format: Format = "table",
    title: str = "",
    notes: Sequence[str] | None = None,
    console: Console | None = None,
) -> None:
    """Prints rows to standard output.

    Args:
        columns: names of the columns; a drawn table shortens a setting's path to its last part if
            that is unambiguous.
        rows: one value per column.
        format: `json` prints a list of objects; {"rows", "notes"} if `notes` is not None.
        title: shown above a drawn table.
        notes: shown below a drawn table; with `csv` they go to standard error.
        console: where a drawn table goes.
    """
    if format == "json":
        records = [dict(zip(columns, row, strict=True)) for row in rows]
        print(json_text(records if notes is None else {"rows": records, "notes": list(notes)}))
    elif format == "csv":
        print(csv_text(columns, rows), end="")
        warn(notes or ())
    else:
        console = console or Console()
        # without a terminal, lines keep their full length: a program reads them, or they go to a
        # file
        for line in filter(None, [title]):
            console.print(Text(line, style="bold"), soft_wrap=not console.is_terminal)
        if console.is_terminal:
            console.print(drawn_table(columns, rows))
        else:
            # not by Rich, which would wrap at 80 columns
            print(plain_table(columns, rows), file=console.file)
        for note in notes or ():
            console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def warn(lines: Sequence[str]) -> None:
    """Prints lines to standard error, to keep them out of the data."""
    for line in lines:
        print(line, file=sys.stderr)


def drawn_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """Builds a Rich table of rows. Values are plain text, never markup."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(short_names(columns)):
        table.add_column(
            Text(name), justify="right" if _is_numeric(rows, index) else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    return table


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns rows as aligned lines of text, of any width."""
    cells = [short_names(columns), *([cell_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_is_numeric(rows, index) for index in range(len(columns))]
    lines = (
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(*parts, strict=True)
        )
        for parts in ((line, widths, right) for line in cells)
    )
    return "\n".join(line.rstrip() for line in lines)


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns rows as CSV with a header; lists and mappings are JSON, None is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(
            [
                json_text(value) if isinstance(value, list | dict) else plain_value(value)
                for value in row
            ]
        )
    return text.getvalue()


def _is_numeric(rows: Sequence[Sequence[Any]], index: int) -> bool:
    kinds = {type(row[index]) for row in rows if row[index] is not None}
    return bool(kinds) and kinds <= {int, float, decimal.Decimal}


def print_finding(console: Console, finding: Finding) -> None:
    """Prints what a check found, and the fix on a line of its own."""
    console.print(f"{finding.state:<8}", style=_STATE_STYLES[finding.state], end="")
    console.out(f"{finding.name:<16}{finding.text}", highlight=False)
    if finding.fix:
        console.out(f"{'':<24}{finding.fix}", highlight=False)


_STATE_STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}
