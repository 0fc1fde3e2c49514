import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.errors import ConfigError
from kdr.report.tables.formats import FILE_FORMATS, FileFormat, read_written, written
from kdr.report.tables.grid import Grid

GRID = Grid(
    title="a_study: AP (%) by arm & the difference from baseline",
    columns=("arm", "n", "AP (%)", "difference", "p"),
    rows=(
        ("baseline", "5/5", "39.8 ± 0.3", "", ""),
        ("links=P4->P3, mask_on †", "5/5", "39.1 ± 0.3", "-0.7", "<0.001"),
        ('x #1 ~ 100% {a|b} $5^2 \\ "q" *', "4/5", "40.0", "+0.2", None),
    ),
    notes=("†: declared -- beforehand & not adjusted.", "50 % of a_study <b> failed #2"),
    bold=frozenset({(1, 3)}),
    rules=frozenset({2}),
)
SOURCE = {"study": "a-study", "kind": "ablation", "metrics": ["AP", "AP/a--b>"]}
formats = pytest.mark.parametrize("format", FILE_FORMATS)


def as_text(grid: Grid) -> tuple[tuple[str, ...], ...]:
    return (
        grid.columns,
        *(tuple("" if cell is None else str(cell) for cell in row) for row in grid.rows),
    )


@formats
def test_a_written_table_can_be_read_back(format: FileFormat) -> None:
    found = read_written(written(GRID, format, SOURCE))
    assert found.source == {**SOURCE, "format": format}
    assert found.cells == as_text(GRID)


TEXTS = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S")), min_size=1, max_size=8
)


@formats
@given(
    table=st.lists(
        st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3, unique_by=lambda row: row[0]
    )
)
def test_any_text_can_be_read_back(format: FileFormat, table: list[tuple[str, str, str]]) -> None:
    grid = Grid(
        "title",
        ("arm", "n", "x y"),
        tuple((f"a{row[0]}", *row[1:]) for row in table),
        bold=frozenset({(0, 1)}),
    )
    assert read_written(written(grid, format, SOURCE)).cells == tuple(
        tuple(cell.replace("−", "-") if format == "latex" else cell for cell in row)
        for row in as_text(grid)
    )


@formats
def test_numbers_are_written_in_full(format: FileFormat) -> None:
    grid = Grid("title", ("arm", "mean", "done"), (("a", 0.1 + 0.2, 5), ("b", 1e-12, True)))
    assert read_written(written(grid, format, SOURCE)).cells[1:] == (
        ("a", "0.30000000000000004", "5"),
        ("b", "1e-12", "true"),
    )


def test_json_has_the_numbers_as_numbers() -> None:
    grid = Grid("title", ("arm", "mean"), (("a", 0.25), ("b", None)), notes=("a note",))
    content = json.loads(written(grid, "json", SOURCE))
    assert content["rows"] == [{"arm": "a", "mean": 0.25}, {"arm": "b", "mean": None}]
    assert content["notes"] == ["a note"]


def test_only_bold_cells_are_bold() -> None:
    assert written(GRID, "md", SOURCE).count("**-0.7**") == 1
    assert written(GRID, "html", SOURCE).count("<strong>") == 1
    assert written(GRID, "latex", SOURCE).count(r"\textbf") == 1


def test_style_and_layout_do_not_matter() -> None:
    text = written(GRID, "latex", SOURCE)
    restyled = (
        text.replace("39.8 $\\pm$ 0.3", "$39.8  \\pm 0.3$")
        .replace("\\midrule", "\\hline % a comment")
        .replace("40.0", "\\textbf{40.0}")
        .replace("\\caption{", "\\caption{Ours. ")
        .replace("{lrrrr}", "{l|rrrr}")
    )
    assert restyled != text
    assert read_written(restyled).cells == as_text(GRID)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "# kdr-table: {",
        "% kdr-table: 3",
        '<!-- kdr-table: {"format": "odf"} -->',
        '{"kdr-table": 1}',
    ],
)
def test_a_file_without_a_source_is_refused(text: str) -> None:
    with pytest.raises(
        ConfigError, match="TABLE: must be a file from `kdr table --output`, got one without"
    ):
        read_written(text)


@pytest.mark.parametrize("format", ["latex", "html", "json"])
def test_a_file_without_its_table_is_refused(format: FileFormat) -> None:
    mark = json.dumps({**SOURCE, "format": format})
    text = (
        json.dumps({"kdr-table": json.loads(mark)}) if format == "json" else f"% kdr-table: {mark}"
    )
    with pytest.raises(
        ConfigError, match=r"TABLE: the file's table cannot be read: .* Write it again"
    ):
        read_written(text)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None and shutil.which("tectonic") is None,
    reason="needs pdflatex or tectonic",
)
def test_latex_compiles(tmp_path: Path) -> None:
    table = written(GRID, "latex", SOURCE)
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        + table
        + "\\end{document}\n"
    )
    (tmp_path / "table.tex").write_text(document)
    program = (
        ["tectonic"]
        if shutil.which("tectonic")
        else ["pdflatex", "-interaction=nonstopmode", "-halt-on-error"]
    )
    ended = subprocess.run([*program, "table.tex"], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert (tmp_path / "table.pdf").stat().st_size > 0
