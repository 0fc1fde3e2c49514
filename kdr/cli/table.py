"""`table`: shows or writes the results of a study as a table, in any format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdr.cli.logged_study import NOT_IN_TABLES, StudyInLog
from kdr.cli.options import DEFAULT_STORAGE, StorageOption
from kdr.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from kdr.config.study import Study
    from kdr.report.tables.grid import Grid
    from kdr.report.tables.requested_table import TableRequest
    from kdr.results.reader import Log
    from kdr.storage.layout import Storage

TableFormat = Literal["table", "md", "latex", "csv", "json", "html"]


def command(
    study: StudyInLog,
    storage: StorageOption = DEFAULT_STORAGE,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            help=(
                "AP, AP50, AP75, APs, APm, APl; in an ablation also AP/<class>, s/epoch, memory, "
                "parameters, extras/<name>. "
                "May be repeated; default: the metric of the study."
            ),
        ),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(
            "--by",
            metavar="PATH",
            help="Setting to group by, such as distill.kdr.review_links. May be repeated.",
        ),
    ] = None,
    pivot: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--pivot",
            metavar="PATH PATH",
            help="Means by two settings: one per row, one per column.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="STUDY",
            help="Subtract the arms of the same names in another study.",
        ),
    ] = None,
    cell: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--cell",
            metavar="ARM METRIC",
            help="Trials, commits and log files behind one number.",
        ),
    ] = None,
    allow_unequal: Annotated[
        bool,
        typer.Option(
            "--allow-unequal",
            help="Mark arms with different epochs, images or workers instead of refusing them.",
        ),
    ] = False,
    format_: Annotated[
        TableFormat | None,
        typer.Option(
            "--format", help="Format; by default that of --output's ending, else a table."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)
    ] = None,
) -> None:
    """Show an ablation's arms, a ranking, or a metric by settings.

    An ablation's arms are compared with its baseline, seed by seed: mean and spread, the difference
    with its 95 % interval, p adjusted for the number of arms, and whether the seeds decide it.
    Only completed trials count; failed and stopped ones are listed below. `kdr verify` recomputes
    every cell of a written table.

    For example:

    kdr table ablation-quickstart --metric AP --metric AP50 --metric s/epoch

    kdr table ablation-quickstart --output paper/ablation.tex

    kdr table ablation-quickstart --cell baseline AP

    kdr table ablation-quickstart --compare ablation-24-epochs

    kdr table quickstart --by distill.kdr.review_links --by distill.kdr.attention

    kdr table quickstart --pivot distill.kdr.attention distill.kdr.review_links
    """
    from kdr.cli.logged_study import read_logged_study, study_name
    from kdr.report.tables.formats import FORMAT_OF_ENDING

    ways = {"--by": by, "--pivot": pivot, "--compare": compare, "--cell": cell}
    # each selects a different table
    if len(given := [name for name, value in ways.items() if value]) > 1:
        raise ConfigError(
            f"table: needs at most one of {', '.join(ways)}, got {' and '.join(given)}"
        )
    chosen: TableFormat = format_ or "table"
    if format_ is None and output is not None:
        chosen = FORMAT_OF_ENDING.get(output.suffix.lower(), "table")
    log, name = read_logged_study(study, storage, leave_out=NOT_IN_TABLES)
    if cell:
        _print(_sources(log, name, *cell, storage), chosen)
        return
    from kdr.report.tables.requested_table import request_for, requested_grid

    request = request_for(
        log,
        name,
        metrics=metric or (),
        by=by or (),
        pivot=pivot or (),
        other=study_name(compare) if compare else None,
        allow_unequal=allow_unequal,
    )
    # these cells are numbers, which print_table rounds itself; a file gets them rounded
    plain_rows = request.kind in ("ranking", "settings")
    in_full = chosen in ("csv", "json") or (plain_rows and chosen == "table" and output is None)
    grid = requested_grid(
        request,
        lambda other: (
            log if other == name else read_logged_study(other, storage, leave_out=NOT_IN_TABLES)[0]
        ),
        in_full=in_full,
    )
    if output is None and (chosen == "table" or (plain_rows and in_full)):
        _print(grid, chosen)
    else:
        _write(grid, chosen, request, output)


def print_ranking(console: "Console", storage: "Storage", study: "Study", metric: str) -> None:
    """Prints the results of a study from the log, as `run` does at its end."""
    from kdr.report.arm_trials import ablation_of
    from kdr.report.tables.requested_table import TableRequest, requested_grid
    from kdr.results.reader import read_log

    log = read_log(storage, study.study)
    if ablation_of(log, study.study) is not None:
        # at the end of a run an unequal arm is marked: an error would hide the other results
        request = TableRequest(study.study, "ablation", allow_unequal=True)
    else:
        request = TableRequest(study.study, "ranking", (metric,))
    _print(
        requested_grid(request, lambda _: log, in_full=request.kind == "ranking"), "table", console
    )


def _sources(log: "Log", study: str, arm: str, metric: str, storage: str) -> "Grid":
    from kdr.report.tables.cell_sources import cell_sources
    from kdr.results.fragments import files_by_key
    from kdr.storage.layout import Storage

    return cell_sources(
        log, study, arm, metric, files_by_key(Storage.at(storage), log.keys_of(study))
    )


def _print(grid: "Grid", format_: TableFormat, console: "Console | None" = None) -> None:
    from kdr.cli.output import print_table

    if format_ not in ("table", "csv", "json"):
        raise ConfigError(f"--format: must be table, csv or json here, got {format_}")
    print_table(
        grid.columns,
        grid.rows,
        format=format_,
        title=grid.title,
        notes=grid.notes,
        console=console,
    )


def _write(
    grid: "Grid", format_: TableFormat, request: "TableRequest", output: Path | None
) -> None:
    from kdr.cli.output_file import write_output
    from kdr.report.tables.formats import FORMAT_OF_ENDING, written

    if format_ == "table":
        raise ConfigError(
            f"--output: must end in {', '.join(FORMAT_OF_ENDING)}, got {output}. "
            "Rename it, or add --format"
        )
    text = written(grid, format_, request.source())
    if output is None:
        print(text, end="")
        return
    write_output(text, output, option="--output")
    print(f"Written to {output}. Check it against the log at any time: kdr verify {output}")
