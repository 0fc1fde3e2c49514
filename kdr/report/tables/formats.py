"""Tables written as Markdown, LaTeX, HTML, CSV and JSON, and read back cell by cell.

Every written table holds its source, in a comment or a JSON member, from which `verify` recomputes
it. Reading ignores style, so bold type, spacing and captions may be edited.
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
    """The content of a written file."""

    source: dict[str, Any]
    """The table's source, as passed to `written`."""
    cells: tuple[tuple[str, ...], ...]
    """Rows of text, column names first."""


def written(grid: Grid, format: FileFormat, source: Mapping[str, Any]) -> str:
    """Returns a table as the text of a file.

    Args:
        grid: the table.
        format: the file format.
        source: plain values from which the table can be recomputed.
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
    # an HTML comment must not contain two hyphens; in JSON one of them can be escaped
    comment = f"<!-- {mark.replace('--', '-' + chr(92) + 'u002d')} -->\n"
    return comment + (_markdown(grid) if format == "md" else _html(grid))


def read_written(text: str) -> WrittenTable:
    """Reads a file made by `written`, even if it was edited since.

    Raises:
        ConfigError: if its source or its table cannot be found.
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
            f"TABLE: the file's table cannot be read: {error}. Write it again with `kdr table "
            "--output`"
        ) from error
    return WrittenTable(
        # whitespace is style, like bold type
        source,
        tuple(tuple(" ".join(cell.split()) for cell in row) for row in cells),
    )


def _source(text: str) -> dict[str, Any]:
    try:
        # JSON has no comments, so its source is a member; elsewhere it follows the mark
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
        f"TABLE: must be a file from `kdr table --output`, got one without a '{_MARK}' line. Write "
        "it again"
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
    # Markdown has no row groups, so `rules` are not shown
    head = line([_markdown_text(name) for name in grid.columns]) + line(["---"] * len(grid.columns))
    return f"**{_markdown_text(grid.title)}**\n\n{head}{''.join(map(line, rows))}\n" + "".join(
        f"- {_markdown_text(note)}\n" for note in grid.notes
    )


def _markdown_text(text: str, bold: bool = False) -> str:
    # a bar would end the cell; the other characters would start markup
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
    # not a full parser: only the first table counts, whatever page it was pasted into
    table = text[text.index("<table") : text.index("</table>")]
    rows = re.findall(r"<tr\b[^>]*>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
    return [[html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in row] for row in cells]
