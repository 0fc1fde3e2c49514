"""Tables as Markdown, LaTeX, HTML, CSV and JSON, and the way back: what a written file says in each
cell.

Every written table carries where it comes from, as a comment or a member, by which `verify`
recomputes it. Reading back takes styling away, so that a table may be set in bold, spaced or
captioned anew without being another table.
"""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kdr.errors import ConfigError
from kdr.report.formatting import cell_text
from kdr.report.tables.grid import Cell, Grid
from kdr.report.tables.latex import latex_cells, latex_text

FileFormat = Literal["md", "latex", "csv", "json", "html"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
FORMAT_OF_ENDING: dict[str, FileFormat] = {
    ".md": "md",
    ".tex": "latex",
    ".csv": "csv",
    ".json": "json",
    ".html": "html",
}
_MARK = "kdr-table:"


@dataclass(frozen=True)
class WrittenTable:
    """What a written file says."""

    source: dict[str, Any]
    """Where the table comes from, as it was given to `written`."""
    cells: tuple[tuple[str, ...], ...]
    """Rows of texts, the names of the columns first."""


def written(grid: Grid, format: FileFormat, source: Mapping[str, Any]) -> str:
    """A table as the text of a file.

    Args:
        grid: the table.
        format: how to write it.
        source: plain values from which the table can be computed again.
    """
    mark = f"{_MARK} {json.dumps({**source, 'format': format})}"
    if format == "json":
        rows = [dict(zip(grid.columns, row, strict=True)) for row in grid.rows]
        content = {
            "kdr-table": {**source, "format": format},
            "title": grid.title,
            "rows": rows,
            "notes": grid.notes,
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format == "csv":
        return f"# {mark}\n{_csv(grid)}"
    if format == "latex":
        return f"% {mark}\n{latex_text(grid)}"
    # a comment of HTML ends at two hyphens
    comment = f"<!-- {mark.replace('--', '-' + chr(92) + 'u002d')} -->\n"
    return comment + (_markdown(grid) if format == "md" else _html(grid))


def read_written(text: str) -> WrittenTable:
    """What a file says that `written` has made, whatever was changed in it since.

    Raises:
        ConfigError: if it does not say where it comes from, or its table cannot be found.
    """
    source = _source(text)
    readers = {
        "json": _json_cells,
        "csv": _csv_cells,
        "latex": latex_cells,
        "md": _markdown_cells,
        "html": _html_cells,
    }
    try:
        cells = readers[source["format"]](text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"TABLE: must hold the table that its source names, got {error}. Write it again with "
            "table"
        ) from error
    return WrittenTable(
        source, tuple(tuple(" ".join(cell.split()) for cell in row) for row in cells)
    )


def _source(text: str) -> dict[str, Any]:
    try:
        if text.lstrip().startswith("{"):
            found = json.loads(text)["kdr-table"]
        else:
            found = json.JSONDecoder().raw_decode(text[text.index(_MARK) + len(_MARK) :].lstrip())[
                0
            ]
        if found["format"] in FILE_FORMATS:
            return dict(found)
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(
        "TABLE: must be a table that `table --format ... --output` wrote, with its line "
        f"'{_MARK}', got none. Write it again"
    )


def _csv(grid: Grid) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [grid.columns, *([cell_text(value, in_full=True) for value in row] for row in grid.rows)]
    )
    return text.getvalue() + "".join(f"# {note}\n" for note in grid.notes)


def _csv_cells(text: str) -> list[list[str]]:
    return list(csv.reader(line for line in text.splitlines() if line and not line.startswith("#")))


def _json_cells(text: str) -> list[list[str]]:
    rows = json.loads(text)["rows"]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [
        columns,
        *([cell_text(row.get(name), in_full=True) for name in columns] for row in rows),
    ]


def _markdown(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |\n"

    rows = [
        [
            _markdown_text(cell_text(value, in_full=True), (index, column) in grid.bold)
            for column, value in enumerate(row)
        ]
        for index, row in enumerate(grid.rows)
    ]
    head = line([_markdown_text(name) for name in grid.columns]) + line(["---"] * len(grid.columns))
    return f"**{_markdown_text(grid.title)}**\n\n{head}{''.join(map(line, rows))}\n" + "".join(
        f"- {_markdown_text(note)}\n" for note in grid.notes
    )


def _markdown_text(text: str, bold: bool = False) -> str:
    escaped = re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text)
    return f"**{escaped}**" if bold and text else escaped


def _markdown_cells(text: str) -> list[list[str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [
        [_plain_markdown(cell) for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in lines
    ]
    return [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


def _plain_markdown(cell: str) -> str:
    return re.sub(r"\\(.)", r"\1", re.sub(r"(?<!\\)\*\*", "", cell)).strip()


def _html(grid: Grid) -> str:
    def cell(value: Cell, tag: str = "td", bold: bool = False) -> str:
        text = html.escape(cell_text(value, in_full=True))
        return f"<{tag}>{f'<strong>{text}</strong>' if bold and text else text}</{tag}>"

    rows = [
        "".join(cell(value, bold=(index, column) in grid.bold) for column, value in enumerate(row))
        for index, row in enumerate(grid.rows)
    ]
    head = f"<tr>{''.join(cell(name, 'th') for name in grid.columns)}</tr>"
    notes = "".join(f"<li>{html.escape(note)}</li>\n" for note in grid.notes)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<table>\n<caption>{html.escape(grid.title)}</caption>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>\n"
        f"<ul>\n{notes}</ul>\n"
    )


def _html_cells(text: str) -> list[list[str]]:
    table = text[text.index("<table") : text.index("</table>")]
    rows = re.findall(r"<tr\b[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]
