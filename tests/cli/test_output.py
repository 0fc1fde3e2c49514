import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdr.cli.output import csv_text, plain_table, print_table
from tests.cli.conftest import text_of


def test_plain_lines_are_aligned_with_numbers_to_the_right() -> None:
    text = plain_table(["name", "a.b.n", "x"], [["long name", 5, None], ["b", 100, "y"]])
    assert text.splitlines() == ["name         n  x", "long name    5", "b          100  y"]


@given(
    st.lists(
        st.tuples(
            st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])),
            st.integers(),
            st.floats(0, 1),
        )
    )
)
def test_csv_can_be_read_back(rows: list[tuple[str, int, float]]) -> None:
    found = list(csv.reader(io.StringIO(csv_text(["a", "b", "c"], rows))))
    assert found == [
        ["a", "b", "c"],
        *([text, str(number), str(share)] for text, number, share in rows),
    ]


def test_values_on_a_terminal_are_never_markup() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    print_table(
        ["links"], [["[bold]P4[/bold]"]], title="[red]title", notes=["[note]"], console=console
    )
    text = text_of(console)
    assert "[bold]P4[/bold]" in text
    assert "[red]title" in text
    assert "[note]" in text


def test_plain_lines_are_not_cut_at_a_width() -> None:
    console = Console(file=io.StringIO(), width=20)
    print_table(["name"], [["x" * 50]], title="t" * 50, notes=["n" * 50], console=console)
    assert text_of(console) == f"{'t' * 50}\nname\n{'x' * 50}\n{'n' * 50}\n"


def test_notes_of_csv_stay_out_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["a"], [[1]], format="csv", notes=["careful"])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a\n1\n", "careful\n")
