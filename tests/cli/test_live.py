"""The live view of a run: plain lines, or a table on a terminal."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from kdr.cli.live import MAX_ROWS, LiveView
from kdr.run.observer import TrialUpdate
from tests.cli.conftest import text_of


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("kdr.cli.live.time.monotonic", clock)
    return clock


def progress(number: int, state: str = "running", epoch: int = 1, **columns: Any) -> TrialUpdate:
    return TrialUpdate(
        name=str(number), key=f"key-{number}", state=state, epoch=epoch, epochs=4, **columns
    )


def lines_of(view: LiveView, console: Console) -> list[str]:
    """Returns the lines of the table on a terminal, without colours."""
    with console.capture() as capture:
        console.print(view._render())
    return capture.get().splitlines()


@pytest.fixture
def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100)


@pytest.fixture
def view(terminal: Console) -> LiveView:
    view = LiveView(terminal, metric="AP", log="runs/log")
    view.phase("Running trials")
    return view


def test_without_a_terminal_each_change_is_a_plain_line(clock: Clock) -> None:
    console = Console(file=io.StringIO(), width=40)
    with LiveView(console, metric="AP50", log="runs/log") as view:
        view.phase("Starting Ray")
        clock.now += 65
        view.plan(3, 1, 2)
        view.update(progress(1, epoch=0))
        view.update(progress(1, epoch=0))
        view.update(progress(1, epoch=2, value=0.25))
        view.update(progress(1, "failed", epoch=2, value=0.25, reason="out of [memory]\nTraceback"))
        clock.now += 3600
        view.plan(None, 0, 1)
    assert text_of(console).splitlines() == [
        "[0:00] Starting Ray ...",
        "[1:05] 3 trials, 1 of them known, 2 at a time",
        "[1:05]        1  epoch 0/4  running",
        "[1:05]        1  epoch 2/4  running  AP50 0.250",
        "[1:05]        1  epoch 2/4  failed  AP50 0.250  out of [memory]",
        "[1:01:05] as many trials as the budget allows, 0 of them known, 1 at a time",
    ]


def test_a_terminal_shows_a_table_that_redraws_itself(terminal: Console) -> None:
    with LiveView(terminal, metric="AP", log="runs/log") as view:
        view.phase("Running trials")
        view.update(progress(7, epoch=2, value=0.125))
    text = text_of(terminal)
    assert "Running trials" in text
    assert re.search(r"7 +running +\S+ +2/4 +0\.125", text)
    assert "\x1b[" in text
    assert text.count("Running trials ...") == 0


def test_each_trial_has_a_row_with_a_progress_bar(view: LiveView, terminal: Console) -> None:
    for number, epoch in ((1, 0), (2, 2), (3, 4)):
        view.update(
            progress(
                number,
                epoch=epoch,
                parameters={"distill.kdr.weight": 3.25, "distill.kdr.review_links": []},
            )
        )
    rows = [line for line in lines_of(view, terminal) if "/4" in line]
    assert [line.count("━") for line in rows] == [0, 8, 16]
    assert all(line.rstrip().endswith("weight=3.25  review_links=none") for line in rows)


def test_user_text_is_neither_markup_nor_control_codes(view: LiveView, terminal: Console) -> None:
    view.update(progress(1, parameters={"distill.kdr.links": "[bold]x[/bold]\\"}))
    view.update(progress(2, "failed", reason="[/red] \x1b[2J bad [link=x]\nmore"))
    text = "\n".join(lines_of(view, terminal))
    assert "links=[bold]x[/bold]\\" in text
    assert "[/red]  [2J bad [link=x]" in text
    assert "more" not in text
    assert "\x1b[2J" not in text


def test_the_table_stays_short_and_keeps_running_trials(view: LiveView, terminal: Console) -> None:
    total = MAX_ROWS + 15
    for number in range(1, total + 1):
        view.update(progress(number, "running" if number in (2, total) else "completed"))
    lines = lines_of(view, terminal)
    shown = [int(line.split()[0]) for line in lines if "/4" in line]
    assert shown == [2, *range(total - MAX_ROWS + 2, total + 1)]
    assert "and 15 more" in lines


def test_more_running_trials_than_rows_are_counted(view: LiveView, terminal: Console) -> None:
    for number in range(1, MAX_ROWS + 6):
        view.update(progress(number))
    lines = lines_of(view, terminal)
    assert len([line for line in lines if "/4" in line]) == MAX_ROWS
    assert "and 5 more" in lines


def test_the_eta_counts_trials_of_this_run_only(clock: Clock, terminal: Console) -> None:
    view = LiveView(terminal, metric="AP", log="runs/log")
    view.phase("Training the teacher")
    view.update(TrialUpdate(name="teacher", key="t", state="completed", epoch=4, epochs=4))
    clock.now += 500
    view.phase("Running trials")
    view.plan(10, 5, 1)
    for number in range(1, 6):
        view.update(progress(number, "completed", epoch=4))
    assert " left" not in lines_of(view, terminal)[0]
    view.update(progress(6, epoch=0))
    clock.now += 60
    view.update(progress(6, epoch=2))  # half a trial a minute; four and a half are left
    assert lines_of(view, terminal)[0] == "Running trials  9:20, 5 of 10 trials, about 9:00 left"
    clock.now += 60
    view.update(progress(6, "stopped_early", epoch=3))
    assert lines_of(view, terminal)[0] == "Running trials  10:20, 6 of 10 trials, about 8:00 left"


def test_without_a_number_of_trials_there_is_no_eta(view: LiveView, terminal: Console) -> None:
    view.plan(None, 0, 1)
    view.update(progress(1, "completed", epoch=4))
    assert "left" not in lines_of(view, terminal)[0]
