"""The parts of a page: sections with tables, figures and facts, and queries for their data."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from kdr.report.page.drawing import Figure
from kdr.report.study_facts import Failure
from kdr.report.tables.grid import Grid

MOST_DATA_ROWS = 100
"""Most rows in the table below a figure; its query prints all."""


@dataclass(frozen=True)
class Tile:
    """A number at the head of the page."""

    value: str
    label: str
    word: str = ""
    """Verdict that sets its colour; empty for none."""


@dataclass(frozen=True)
class FigureBlock:
    """A figure with its caption, and its data for readers who cannot see it."""

    id: str
    title: str
    caption: str
    """How to read the figure."""
    figure: Figure
    data: Grid | None = None
    query: str | None = None
    """Command that prints all its data."""
    notes: tuple[str, ...] = ()
    """Remarks on data that is not drawn."""
    is_half: bool = False
    """Whether it takes half the width of a wide screen."""

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.figure["layout"]["height"])


@dataclass(frozen=True)
class Fact:
    """A name with its values."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class LongText:
    """A text that is folded at first."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    lead: tuple[str, ...] = ()
    """Opening sentences: what a reader must know first, or why the section is empty."""
    table: Grid | None = None
    figures: tuple[FigureBlock, ...] = ()
    facts: tuple[Fact, ...] = ()
    failures: tuple[Failure, ...] = ()
    texts: tuple[LongText, ...] = ()


def trials_query(study: str, columns: Sequence[str]) -> str:
    """Returns the command that prints columns of a study's students.

    `$$...$$` is DuckDB's other quoting; single quotes would end those of the shell.
    """
    # quoted, because names of settings contain dots
    names = ", ".join(f'"{name}"' for name in columns)
    return _command(
        f"SELECT {names} FROM trials "  # noqa: S608 - printed, not run
        f"WHERE study = $${study}$$ AND role = $$student$$ ORDER BY ALL"
    )


def epochs_query(study: str, metric: str) -> str:
    """Returns the command that prints a metric of a study's students by epoch."""
    return _command(
        f'SELECT t.arm, t.seed, t.state, e.epoch, e."{metric}" '  # noqa: S608 - printed, not run
        "FROM epochs e JOIN trials t USING (key) "
        f"WHERE t.study = $${study}$$ AND t.role = $$student$$ ORDER BY ALL"
    )


def not_drawn(drawn: int, num_all: int) -> tuple[str, ...]:
    """Returns a note on trials that are not drawn; empty if all are."""
    note = f"{drawn} of {num_all} trials are drawn: the best, and an even sample of the others."
    return (note,) if drawn < num_all else ()


def _command(sql: str) -> str:
    return f"kdr query {shlex.quote(sql)}"
