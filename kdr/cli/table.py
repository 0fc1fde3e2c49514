"""`table`: the ranking of a study, or a metric by settings."""

from typing import TYPE_CHECKING, Annotated

import typer

from kdr.cli.logged_study import MetricOption, StudyInLog
from kdr.cli.options import DEFAULT_STORAGE, StorageOption
from kdr.cli.output import Format

if TYPE_CHECKING:
    from rich.console import Console

    from kdr.config.study import Study
    from kdr.results.reader import Log
    from kdr.storage import Storage


def command(
    study: StudyInLog,
    storage: StorageOption = DEFAULT_STORAGE,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="PATH", help="Setting to group by, such as distill.kdr.review_links. May be repeated."),
    ] = None,
    metric: MetricOption = None,
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = "table",
) -> None:
    """Show n, mean and spread of a metric by any settings; without --by, the ranking of the study's trials.

    Only completed trials are averaged; what was stopped early or failed is counted below the table.

    For example:

    python orchestrate.py table quickstart

    python orchestrate.py table search_spaces/quickstart.yaml --by distill.kdr.review_links --by distill.kdr.attention
    """
    from kdr.cli.logged_study import read_logged_study
    from kdr.cli.output import print_table
    from kdr.report.ranking import searched_metric
    from kdr.report.settings_table import settings_table

    log, name = read_logged_study(study, storage)
    metric = metric or searched_metric(log, name)
    if not by:
        _print_ranking(log, name, metric, format_)
        return
    found = settings_table(log, name, by, metric)
    print_table(*found.cells(), format=format_, title=f"{name}: {metric} by {', '.join(by)}", notes=found.notes)


def print_ranking(console: "Console", storage: "Storage", study: "Study", metric: str) -> None:
    """Prints the ranking of a study's trials from the log, as `run` does at its end."""
    from kdr.results.reader import read_log

    _print_ranking(read_log(storage, study.study), study.study, metric, "table", console)


def _print_ranking(log: "Log", study: str, metric: str, format_: Format, console: "Console | None" = None) -> None:
    from kdr.cli.output import print_table
    from kdr.report.ranking import count_states, ranking, ranking_rows

    trials = ranking(log, study, metric)
    counts = ", ".join(f"{count} {state}" for state, count in count_states(trials).items()) or "no trials"
    title = f"{study}: trials by {metric} of their last epoch ({counts})"
    print_table(*ranking_rows(trials, metric), format=format_, title=title, notes=[], console=console)
