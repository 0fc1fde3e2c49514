"""What a page is made of: sections with tables, figures, facts and folded texts; and the queries
that give the same data.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from kdr.report.page.drawing import Figure
from kdr.report.study_facts import Failure
from kdr.report.tables.grid import Grid

MOST_DATA_ROWS = 100
"""Rows of the table below a figure; the query beside it gives all."""


@dataclass(frozen=True)
class Tile:
    """One number at the head of the page."""

    value: str
    label: str
    word: str = ""
    """The verdict whose colour it has."""


@dataclass(frozen=True)
class FigureBlock:
    """A figure with what is said of it, and its data for those who cannot see it."""

    id: str
    title: str
    caption: str
    """What is to be seen."""
    figure: Figure
    data: Grid | None = None
    query: str | None = None
    """The command that prints all of its data."""
    notes: tuple[str, ...] = ()
    """What is not drawn."""
    is_half: bool = False
    """Whether two stand side by side on a wide screen."""

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.figure["layout"]["height"])


@dataclass(frozen=True)
class Fact:
    """A name with its values."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class LongText:
    """A text that is folded away."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """One part of the page."""

    id: str
    title: str
    lead: tuple[str, ...] = ()
    """What is said before all else: what a reader must know, or why there is nothing to see."""
    table: Grid | None = None
    figures: tuple[FigureBlock, ...] = ()
    facts: tuple[Fact, ...] = ()
    failures: tuple[Failure, ...] = ()
    texts: tuple[LongText, ...] = ()


def trials_query(study: str, columns: Sequence[str]) -> str:
    """The command that prints columns of a study's students; `$$...$$` are quotes of DuckDB that a
    shell leaves alone.
    """
    names = ", ".join(f'"{name}"' for name in columns)
    return _command(
        f"SELECT {names} FROM trials "  # noqa: S608 - printed, not run
        f"WHERE study = $${study}$$ AND role = $$student$$ ORDER BY ALL"
    )


def epochs_query(study: str, metric: str) -> str:
    """The command that prints the metric of a study's students epoch by epoch."""
    return _command(
        f'SELECT t.arm, t.seed, t.state, e.epoch, e."{metric}" '  # noqa: S608 - printed, not run
        "FROM epochs e JOIN trials t USING (key) "
        f"WHERE t.study = $${study}$$ AND t.role = $$student$$ ORDER BY ALL"
    )


def not_drawn(drawn: int, num_all: int) -> tuple[str, ...]:
    """A note on trials that are not drawn; none where all are."""
    note = f"Drawn are {drawn} of {num_all} trials: the best, and evenly many of the others."
    return (note,) if drawn < num_all else ()


def _command(sql: str) -> str:
    return f"python orchestrate.py query {shlex.quote(sql)}"
