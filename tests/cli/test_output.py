import csv
import datetime
import decimal
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kdr.cli.output import csv_text, json_text, plain_table, print_table, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "true"),
        (0.123456, "0.1235"),
        (44.0, "44"),
        (1e-5, "1e-05"),
        (math.nan, "nan"),
        ("two\nlines\x1b[31m", "two lines [31m"),
        (["a", 1], '["a", 1]'),
        (decimal.Decimal("12"), "12"),
    ],
)
def test_a_cell_is_one_readable_line(value, text):
    assert shown(value) == text


def test_plain_lines_are_aligned_and_numbers_stand_right():
    text = plain_table(["name", "a.b.n", "x"], [["long name", 5, None], ["b", 100, "y"]])
    assert text.splitlines() == ["name         n  x", "long name    5", "b          100  y"]


def test_json_has_no_nan_and_times_as_text():
    value = {
        "a": math.nan,
        "b": [math.inf, 1.5],
        "t": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "d": decimal.Decimal(3),
    }
    assert json.loads(json_text(value)) == {
        "a": None,
        "b": [None, 1.5],
        "t": "2026-01-01T00:00:00+00:00",
        "d": 3,
    }


@given(
    st.lists(
        st.tuples(
            st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"])),
            st.integers(),
            st.floats(0, 1),
        )
    )
)
def test_csv_reads_back(rows):
    found = list(csv.reader(io.StringIO(csv_text(["a", "b", "c"], rows))))
    assert found == [
        ["a", "b", "c"],
        *([text, str(number), str(share)] for text, number, share in rows),
    ]


def test_values_on_a_terminal_are_never_markup():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, color_system=None)
    print_table(
        ["links"], [["[bold]P4[/bold]"]], title="[red]title", notes=["[note]"], console=console
    )
    text = console.file.getvalue()
    assert "[bold]P4[/bold]" in text
    assert "[red]title" in text
    assert "[note]" in text


def test_plain_lines_are_not_cut_at_a_width():
    console = Console(file=io.StringIO(), width=20)
    print_table(["name"], [["x" * 50]], notes=["n" * 50], console=console)
    assert console.file.getvalue() == f"name\n{'x' * 50}\n{'n' * 50}\n"


def test_notes_of_csv_stay_out_of_the_data(capsys):
    print_table(["a"], [[1]], format="csv", notes=["careful"])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a\n1\n", "careful\n")
