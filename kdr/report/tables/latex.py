"""Tables as LaTeX with booktabs, and their cells read back."""

import re

from kdr.report.formatting import cell_text
from kdr.report.tables.grid import Cell, Grid

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\symbol{34}",
    "±": r"$\pm$",
    "†": r"$\dagger$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "−": r"$-$",
}
# read back after all `$` were removed, so commands are keyed without theirs
_BACK = {
    (command if letter == "$" else command.replace("$", "")): letter
    for letter, command in _ESCAPES.items()
    if letter != "−"
}
_COMMAND = re.compile("|".join(map(re.escape, sorted(_BACK, key=len, reverse=True))))


def latex_text(grid: Grid) -> str:
    r"""Returns a `table` with a booktabs `tabular` and its notes; needs `\usepackage{booktabs}`.

    Args:
        grid: the table.
    """
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escaped(grid.title)}}}",
    ]
    lines += [
        rf"\begin{{tabular}}{{l{'r' * (len(grid.columns) - 1)}}}",
        r"\toprule",
        _row(grid.columns),
        r"\midrule",
    ]
    for index, row in enumerate(grid.rows):
        if index in grid.rules:
            lines.append(r"\midrule")
        lines.append(_row(row, frozenset(column for at, column in grid.bold if at == index)))
    lines += [r"\bottomrule", r"\end{tabular}"]
    # threeparttable would need another package
    if grid.notes:
        lines += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [rf"{escaped(note)}\par" for note in grid.notes]
        lines += [r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table}", ""])


def latex_cells(text: str) -> list[list[str]]:
    """Returns the text of each cell of a file's first `tabular`, without rules and styles.

    Raises:
        ValueError: if there is no `tabular`.
    """
    body = re.search(r"\\begin\{tabular\}\{[^}]*\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    if body is None:
        raise ValueError("no tabular")
    # an unescaped percent sign starts a comment
    content = re.sub(r"(?<!\\)%.*", "", body[1])
    content = re.sub(
        r"\\(?:toprule|midrule|bottomrule|addlinespace|hline|cmidrule(?:\([^)]*\))?\{[^}]*\})",
        "",
        content,
    )
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", content) if row.strip()]
    return [[_plain(cell) for cell in re.split(r"(?<!\\)&", row)] for row in rows]


def escaped(text: str) -> str:
    """Returns a text with every special character escaped for LaTeX."""
    return "".join(_ESCAPES.get(letter, letter) for letter in text)


def _row(cells: tuple[Cell, ...], bold: frozenset[int] = frozenset()) -> str:
    texts = [
        _cell(cell_text(value, in_full=True), index in bold) for index, value in enumerate(cells)
    ]
    return f"{' & '.join(texts)} \\\\"


def _cell(text: str, bold: bool) -> str:
    # a hyphen before a number is a minus sign
    set_ = re.sub(r"(?<![\w.])-(?=\d)", r"$-$", escaped(text))
    return rf"\textbf{{{set_}}}" if bold and text else set_


def _plain(cell: str) -> str:
    cell = cell.strip()
    while (
        inner := re.fullmatch(r"\\(?:textbf|emph|underline)\{(.*)\}", cell, re.DOTALL)
    ) is not None:
        cell = inner[1].strip()
    cell = re.sub(r"(?<!\\)\$", "", cell)
    return _COMMAND.sub(lambda match: _BACK[match[0]], cell)
