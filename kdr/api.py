"""The Python API: studies, their plans and runs, the trial log, tables and trained students.

    import kdr

    study = kdr.read_study("study.yaml")
    kdr.run_study(study)
    log = kdr.open_log()
    print(log.trials(study.study).select(["key", "state", "AP"]))

Import these names from `kdr`. The names and their signatures are stable: changes are announced in
the changelog, one release ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kdr.config.study import Study as Study
from kdr.config.study import read_study as read_study
from kdr.errors import ConfigError
from kdr.errors import KdrError as KdrError
from kdr.run.observer import Observer as Observer
from kdr.run.observer import TrialUpdate as TrialUpdate
from kdr.storage.layout import Storage

if TYPE_CHECKING:
    import pyarrow as pa

    from kdr.plan.expand import StudyPlan
    from kdr.report.tables.grid import Cell, Grid
    from kdr.report.tables.requested_table import TableRequest
    from kdr.results.reader import Log
    from kdr.run.study_run import Outcome
    from kdr.training.student import Student

TableFormat = Literal["md", "latex", "csv", "json", "html"]


def plan_study(study: Study, *, storage: str | Path = "runs") -> StudyPlan:
    """Returns what a study would run: its trials, how many are known, and warnings.

    Neither torch nor Ray is imported, and nothing is written.

    Args:
        study: from `read_study`.
        storage: a folder or an `s3://` or `gs://` URL, as for `run_study`.

    Raises:
        ConfigError: if the search space or the design cannot run.
    """
    from kdr.errors import DataError, WeightsError
    from kdr.plan.expand import expand_study
    from kdr.results.reader import known_keys, read_log
    from kdr.run.trial_identity import trial_maker

    place = Storage.at(storage)
    known = known_keys(read_log(place)) if place.log.exists() else frozenset[str]()
    try:
        return expand_study(study, make_trial=trial_maker(study, place), known=known)
    except (DataError, WeightsError):  # not on this machine: known trials cannot be counted
        return expand_study(study, make_trial=None, known=known)


def run_study(
    study: Study,
    *,
    storage: str | Path = "runs",
    observer: Observer | None = None,
    address: str | None = None,
    rerun: bool = False,
    preflight: bool = True,
) -> Outcome:
    """Runs a study's missing trials, as `kdr run` does, and returns how the run ended.

    Args:
        study: from `read_study`.
        storage: where log, checkpoints and weights go: a folder or an `s3://` or `gs://` URL.
        observer: notified of every phase and trial; None prints a live table on a terminal, and
            lines elsewhere.
        address: a Ray cluster to join, as HOST:PORT or `auto`; None uses the Ray that this process
            has started, or starts one.
        rerun: run trials again even if their results are known.
        preflight: check the study's base trial, and the nodes of a cluster, before the first trial.

    Raises:
        KdrError: for anything wrong with the study, the data, the storage or the machine.
    """
    from kdr.run.study_run import run_study as run

    place = Storage.at(storage)
    if observer is not None:
        return run(
            study,
            storage=place,
            observer=observer,
            address=address,
            rerun=rerun,
            preflight=preflight,
        )
    from rich.console import Console

    from kdr.cli.live import LiveView

    with LiveView(Console(), metric=study.metric, log=str(place.log)) as view:
        return run(
            study, storage=place, observer=view, address=address, rerun=rerun, preflight=preflight
        )


def open_log(storage: str | Path = "runs") -> TrialLog:
    """Returns the trial log of a storage.

    Args:
        storage: a folder or an `s3://` or `gs://` URL, as for `run_study`.

    Raises:
        ConfigError: if no study was run there.
    """
    place = Storage.at(storage)
    if not place.log.exists():
        raise ConfigError(
            f"storage: must hold a trial log, got {place.root}, where no study was run. "
            "Run one first, or name its storage"
        )
    return TrialLog(place)


class TrialLog:
    """The trials of all studies in one storage. Each call reads the log again.

    Args:
        storage: where the log is stored; see `open_log`.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def studies(self) -> tuple[str, ...]:
        """Returns the names of all studies, sorted."""
        from kdr.results.fragments import logged_studies

        return tuple(sorted(logged_studies(self._storage)))

    def trials(self, study: str | None = None) -> pa.Table:
        """Returns one row per study and trial: its state, metrics, provenance, and every setting as
        a column named by its path.
        """
        return _of_study(self.query("SELECT * FROM trials ORDER BY study, key"), study)

    def epochs(self, study: str | None = None) -> pa.Table:
        """Returns one row per trial and epoch: metrics, losses, learning rate, times, memory."""
        import pyarrow.compute as pc

        rows = self.query("SELECT * FROM epochs ORDER BY key, epoch")
        if study is None:
            return rows
        # by key, not by study: another study may have trained a trial that this one uses
        keys = _of_study(self.query("SELECT study, key FROM trials"), study)["key"]
        return rows.filter(pc.is_in(rows["key"], value_set=keys))

    def arms(self, study: str | None = None) -> pa.Table:
        """Returns the trials that each study uses, with their arms and levels."""
        return _of_study(self.query("SELECT * FROM arms ORDER BY study, arm, key"), study)

    def query(self, sql: str) -> pa.Table:
        """Returns the result of a SQL statement over `trials`, `epochs`, `arms` and `events`.

        Raises:
            QueryError: if DuckDB refuses the statement.
        """
        from kdr.results.sql import query

        return query(self._storage, sql)

    def _read(self, study: str) -> Log:
        from kdr.results.reader import read_log

        log = read_log(self._storage, study)
        if not log.keys_of(study):
            known = ", ".join(self.studies()) or "none"
            raise ConfigError(f"study: must be one of the log's ({known}), got {study!r}")
        return log


def make_table(
    log: TrialLog,
    study: str,
    *,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    pivot: tuple[str, str] | None = None,
    compare: str | None = None,
    allow_unequal: bool = False,
) -> ResultTable:
    """Returns the table of a study, as `kdr table` prints it.

    For an ablation, these are its arms with intervals and verdicts; for a search, its ranking.

    Args:
        log: from `open_log`.
        study: name of the study.
        metrics: measures to show, such as `AP50`; the study's own by default.
        by: settings to group the trials by.
        pivot: two settings, for the rows and the columns.
        compare: a second study with the same arms.
        allow_unequal: mark arms with unequal budgets instead of refusing them.

    Raises:
        ConfigError: if the log has no such study or table.
    """
    from kdr.report.tables.requested_table import request_for, requested_grid

    request = request_for(
        log._read(study),
        study,
        metrics=metrics,
        by=by,
        pivot=pivot or (),
        other=compare,
        allow_unequal=allow_unequal,
    )
    return ResultTable(requested_grid(request, log._read, in_full=False), request)


@dataclass(frozen=True)
class ResultTable:
    """A table of results. A notebook shows it as HTML; `print` as Markdown."""

    grid: Grid
    request: TableRequest

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.grid.columns

    @property
    def rows(self) -> tuple[tuple[Cell, ...], ...]:
        """The cells, rounded as they are printed."""
        return self.grid.rows

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences that belong below the table: missing trials, warnings."""
        return self.grid.notes

    def text(self, format: TableFormat = "md") -> str:
        """Returns the table as Markdown, LaTeX, CSV, JSON or HTML, which `kdr verify` can check."""
        from kdr.report.tables.formats import written

        return written(self.grid, format, self.request.source())

    def save(self, path: str | Path) -> None:
        """Writes the table in the format of the file's ending: .md, .tex, .csv, .json or .html.

        Raises:
            ConfigError: for another ending.
            StorageError: if the file cannot be written.
        """
        from kdr.report.tables.formats import FORMAT_OF_ENDING
        from kdr.storage.files import store
        from kdr.storage.local_path import LocalPath

        target = LocalPath(path).absolute()
        if target.suffix.lower() not in FORMAT_OF_ENDING:
            raise ConfigError(
                f"path: must end in {', '.join(FORMAT_OF_ENDING)}, got {path}. Rename it"
            )
        text = self.text(FORMAT_OF_ENDING[target.suffix.lower()])
        store(target, lambda aside: aside.write_text(text, encoding="utf-8"), patience_s=0)

    def __str__(self) -> str:
        return self.text("md")

    def _repr_html_(self) -> str:
        return self.text("html")


def load_student(path: str | Path) -> Student:
    """Returns a trained student, ready to find objects: `student.predict([image])`.

    Args:
        path: `student.pt` as a trial saves it, or its folder.

    Raises:
        WeightsError: if the files are missing or damaged, or do not belong together.
    """
    from kdr.training.student import load_student as load

    return load(path)


def _of_study(rows: pa.Table, study: str | None) -> pa.Table:
    import pyarrow.compute as pc

    return rows if study is None else rows.filter(pc.equal(rows["study"], study))
