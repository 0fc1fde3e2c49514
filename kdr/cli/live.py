"""The live view of a run: a table on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kdr.cli.output import print_finding
from kdr.report.formatting import cell_text, clock, settings_label, spaced
from kdr.run.observer import TrialUpdate
from kdr.training.findings import Finding

MAX_ROWS = 20
"""Most rows that the table shows; few terminals are taller."""
_STYLES = {
    "running": "cyan",
    "completed": "green",
    "stopped_early": "yellow",
    "failed": "red",
    "interrupted": "magenta",
    "cancelled": "yellow",
}


class LiveView:
    """Shows a study while it runs; an `Observer`.

    Args:
        console: where to print; a table if it is a terminal, else lines.
        metric: name of the searched metric.
        log: path of the log, shown below the table.
    """

    def __init__(self, console: Console, *, metric: str, log: str) -> None:
        self._console, self._metric, self._log = console, metric, log
        self._trials: dict[str, TrialUpdate] = {}
        self._run_here: set[str] = set()
        self._phase, self._num_before, self._concurrent = "", 0, 1
        self._num_trials: int | None = None
        self._trials_begin = self._begin = time.monotonic()
        self._live = (
            Live(console=console, get_renderable=self._render, refresh_per_second=4)
            if console.is_terminal
            else None
        )

    def __enter__(self) -> "LiveView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def phase(self, text: str) -> None:
        """Shows a new phase of the run."""
        self._phase, self._trials_begin = text, time.monotonic()
        self._line(f"{text} ...")

    def finding(self, finding: Finding) -> None:
        """Prints a finding of the pre-flight."""
        print_finding(self._console, finding)

    def plan(self, num_trials: int | None, num_done: int, concurrent: int) -> None:
        """Shows the number of trials: in all, done before this run, and at a time."""
        self._num_trials, self._num_before, self._concurrent = num_trials, num_done, concurrent
        total = (
            "as many trials as the budget allows" if num_trials is None else f"{num_trials} trials"
        )
        self._line(f"{total}, {num_done} of them known, {concurrent} at a time")

    def update(self, progress: TrialUpdate) -> None:
        """Shows the progress of a trial."""
        before = self._trials.get(progress.key)
        self._trials[progress.key] = progress
        if progress.state == "running":
            self._run_here.add(progress.key)
        # Tune reports a trial more often than it makes progress
        if before is None or _news(before) != _news(progress):
            value = "" if progress.value is None else f"  {self._metric} {progress.value:.3f}"
            reason = f"  {_first_line(progress.reason)}" if progress.reason else ""
            self._line(
                f"{progress.name:>8}  epoch {progress.epoch}/{progress.epochs}  "
                f"{progress.state}{value}{reason}"
            )

    def _line(self, text: str) -> None:
        if self._live is None:
            self._console.out(f"[{clock(time.monotonic() - self._begin)}] {text}", highlight=False)

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, justify in (
            ("trial", "right"),
            ("state", "left"),
            ("progress", "left"),
            ("epoch", "right"),
        ):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        table.add_column(Text(self._metric), justify="right", no_wrap=True)
        table.add_column("settings", overflow="ellipsis", no_wrap=True)
        # a copy: Rich renders in a thread of its own, while updates arrive in the main thread
        trials = list(self._trials.values())
        visible = _visible(trials)
        for trial in visible:
            table.add_row(
                Text(trial.name),
                Text(spaced(trial.state), style=_STYLES.get(trial.state, "")),
                ProgressBar(total=trial.epochs, completed=trial.epoch, width=16),
                f"{trial.epoch}/{trial.epochs}",
                "" if trial.value is None else f"{trial.value:.3f}",
                Text(_first_line(trial.reason) or settings_label(trial.parameters)),
            )
        hidden = len(trials) - len(visible)
        head = Text(
            f"{self._phase}  {clock(time.monotonic() - self._begin)}{self._ended()}{self._left()}",
            style="bold",
        )
        more = [Text(f"and {hidden} more", style="dim")] if hidden else []
        foot = Text(
            f"log: {self._log}    Ctrl-C ends cleanly; the same command resumes", style="dim"
        )
        return Group(head, table, *more, foot)

    def _ended(self) -> str:
        """Returns the number of ended trials, in this run and before."""
        students = [trial for trial in list(self._trials.values()) if trial.name != "teacher"]
        ended = sum(trial.state not in ("running", "interrupted") for trial in students)
        return (
            f", {ended} of {self._num_trials} trials"
            if self._num_trials is not None and students
            else ""
        )

    def _left(self) -> str:
        """Returns the ETA at the rate of this run; empty until a trial made progress.

        Trials that ended before this run took none of its time, so only those that ran here count.
        """
        here = [
            trial
            for trial in list(self._trials.values())
            if trial.key in self._run_here and trial.name != "teacher"
        ]
        done = sum(
            trial.epoch / trial.epochs if trial.state == "running" else 1.0 for trial in here
        )
        if self._num_trials is None or done == 0:
            return ""
        # concurrent trials need no factor: the rate is of all of them together
        left = max(0.0, self._num_trials - self._num_before - done)
        return f", about {clock((time.monotonic() - self._trials_begin) / done * left)} left"


def _news(progress: TrialUpdate) -> tuple[object, ...]:
    """Returns the values of an update; a new line is printed if one of them changes."""
    return (progress.epoch, progress.state, progress.reason)


def _visible(trials: Sequence[TrialUpdate]) -> list[TrialUpdate]:
    """Returns the trials that fit into the table, in their order; running trials take precedence,
    then the latest.
    """
    latest_first = sorted(
        range(len(trials)), key=lambda index: (trials[index].state != "running", -index)
    )
    return [trials[index] for index in sorted(latest_first[:MAX_ROWS])]


def _first_line(text: str) -> str:
    return cell_text(text.strip().partition("\n")[0])
