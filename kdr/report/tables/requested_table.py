"""A requested table: the request as plain values, and its computation from the log.

A written table holds its request, so that `verify` can compute it again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from kdr.errors import ConfigError
from kdr.report.ablation_table import ablation_table
from kdr.report.arm_trials import ablation_of
from kdr.report.formatting import cell_text
from kdr.report.measures import measure_of
from kdr.report.ranking import count_states, ranking, ranking_rows, searched_metric
from kdr.report.settings_table import SettingsTable, settings_table
from kdr.report.study_comparison import study_comparison
from kdr.report.tables.ablation_grid import AP_IN_PERCENT, data_grid, reading_grid
from kdr.report.tables.grid import Cell, Grid, decimals, mean_sd
from kdr.results.reader import Log

Kind = Literal["ablation", "comparison", "pivot", "settings", "ranking"]


@dataclass(frozen=True)
class TableRequest:
    """A request for a table."""

    study: str
    kind: Kind
    metrics: tuple[str, ...] = ()
    """Measures to show; the study's metric if empty. Pivots, rankings and tables by settings show
    only the first."""
    paths: tuple[str, ...] = ()
    """Settings to group by; for a pivot, its two settings."""
    other: str | None = None
    """The study to compare with."""
    allow_unequal: bool = False
    """Whether arms with unequal budgets are marked instead of refused."""

    def source(self) -> dict[str, Any]:
        """Returns the request as plain values, without unset fields."""
        return {name: value for name, value in asdict(self).items() if value}


def request_for(
    log: Log,
    study: str,
    *,
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    pivot: Sequence[str] = (),
    other: str | None = None,
    allow_unequal: bool = False,
) -> TableRequest:
    """Returns the request for a table of a study; by default, its arms or its ranking.

    Args:
        log: the study's log.
        study: name of the study.
        metrics: measures to show; the study's own if empty.
        by: settings to group by.
        pivot: two settings, down and across.
        other: the study to compare with.
        allow_unequal: whether arms with unequal budgets are marked instead of refused.

    Raises:
        ConfigError: if `allow_unequal` is given for a table without arms.
    """
    kind: Kind = "comparison" if other else "pivot" if pivot else "settings" if by else "ranking"
    if kind == "ranking" and ablation_of(log, study) is not None:
        kind = "ablation"
    if allow_unequal and kind not in ("ablation", "comparison"):
        raise ConfigError(
            "--allow-unequal: must be used with arms of an ablation or --compare, got neither. "
            "Leave it out"
        )
    shown = tuple(metrics) or (searched_metric(log, study),)
    return TableRequest(study, kind, shown, tuple(pivot or by), other, allow_unequal)


def request_from(source: Mapping[str, Any]) -> TableRequest:
    """Reads the request in a written table.

    Raises:
        ConfigError: if it is not a request of this version.
    """
    # JSON has lists where the request has tuples; the format belongs to the file
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in source.items()
        if name != "format"
    }
    try:
        request = TableRequest(**values)
    except TypeError as error:
        raise ConfigError(f"TABLE: this version cannot read the file's source: {error}") from error
    if request.kind not in get_args(Kind):
        raise ConfigError(
            f"TABLE: the kind in the file's source must be one of {', '.join(get_args(Kind))}, got "
            f"{request.kind!r}"
        )
    return request


def requested_grid(request: TableRequest, read: Callable[[str], Log], *, in_full: bool) -> Grid:
    """Computes the requested table.

    Args:
        request: the request.
        read: returns the log of a study.
        in_full: do not round numbers, for programs.

    Raises:
        ConfigError: if the log cannot answer it.
    """
    log = read(request.study)
    if request.kind in ("ablation", "comparison"):
        unequal = request.allow_unequal
        if request.kind == "ablation":
            table = ablation_table(log, request.study, request.metrics, allow_unequal=unequal)
        else:
            assert request.other is not None
            logs, studies = (log, read(request.other)), (request.study, request.other)
            table = study_comparison(logs, studies, request.metrics, allow_unequal=unequal)
        return data_grid(table) if in_full else reading_grid(table)
    # the other kinds tabulate a study's trials, and show a single metric
    metric = request.metrics[0] if request.metrics else searched_metric(log, request.study)
    if request.kind == "ranking":
        trials = ranking(log, request.study, metric)
        columns, rows = ranking_rows(trials, metric)
        counts = (
            ", ".join(f"{count} {state}" for state, count in count_states(trials).items())
            or "no trials"
        )
        title = f"{request.study}: trials by {metric} at their last epoch ({counts})"
        return Grid(title, tuple(columns), _rounded(rows, in_full))
    found = settings_table(log, request.study, request.paths, metric)
    # programs get the pivot as plain rows: they can pivot it themselves
    if request.kind == "pivot" and not in_full:
        return _pivot(request, found)
    columns, rows = found.cells()
    title = f"{request.study}: {metric} by {', '.join(request.paths)}"
    return Grid(title, tuple(columns), _rounded(rows, in_full), found.notes)


def _pivot(request: TableRequest, found: SettingsTable) -> Grid:
    """Returns means by two settings: the first down, the second across."""
    measure = measure_of(found.metric)
    down, across = (
        sorted({row.settings[axis] for row in found.rows}, key=_order) for axis in (0, 1)
    )
    # one number of decimals for the whole pivot, so that its cells can be compared by eye
    digits = decimals(row.sd and row.sd * measure.scale for row in found.rows)
    texts = {
        row.settings: (
            f"{mean_sd(row.mean * measure.scale, row.sd and row.sd * measure.scale, digits)} "
            f"(n={row.n})"
        )
        for row in found.rows
    }
    first, second = request.paths
    return Grid(
        title=f"{request.study}: {measure.title} by {first} (down) and {second} (across)",
        columns=(first, *(cell_text(value) for value in across)),
        rows=tuple(
            (cell_text(one), *(texts.get((one, other), "") for other in across)) for one in down
        ),
        notes=(f"{AP_IN_PERCENT} ±: standard deviation over trials.", *found.notes),
    )


def _rounded(rows: list[list[Any]], in_full: bool) -> tuple[tuple[Cell, ...], ...]:
    return tuple(tuple(value if in_full else cell_text(value) for value in row) for row in rows)


def _order(value: Any) -> tuple[int, float, str]:
    """Returns a sort key: numbers in order, before texts."""
    is_number = isinstance(value, int | float)
    return (not is_number, float(value) if is_number else 0.0, str(value))
