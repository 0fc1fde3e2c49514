"""`status`: study progress, from the log alone; needs no Ray."""

import dataclasses
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdr.cli.logged_study import MetricOption, StudyInLog
from kdr.cli.options import DEFAULT_STORAGE, JsonOption, StorageOption

if TYPE_CHECKING:
    from kdr.report.progress import StudyProgress

WATCH_EVERY_S = 2.0
STARTS_WITHIN_S = 60.0
"""Longest time from the start of `run --detach`, or its last output, to the driver's claim."""


def command(
    study: StudyInLog,
    storage: StorageOption = DEFAULT_STORAGE,
    json_: JsonOption = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Refresh until the study is over; Ctrl-C stops watching."),
    ] = False,
    metric: MetricOption = None,
) -> None:
    """Show the trials of a study: state, epochs, last metric, ETA.

    Works from any machine that can read the storage, during the study and after it. `last row` is
    the age of a trial's newest row in the log: a running trial whose last row is old may be
    hanging.

    For example:

    kdr status quickstart --watch

    kdr status quickstart --json
    """
    if watch:
        _watch(study, storage, metric, json_)
        return
    progress = _read(study, storage, metric)
    print(_json(progress) if json_ else _text(progress))


def _read(study: str, storage: str, metric: str | None) -> "StudyProgress":
    from kdr.cli.logged_study import read_logged_study, study_name
    from kdr.errors import ConfigError
    from kdr.report.progress import StudyProgress, study_progress
    from kdr.report.ranking import searched_metric
    from kdr.results.schema import utc_now

    try:
        log, name = read_logged_study(study, storage)
    except ConfigError:
        # a run that has just started has no row in the log yet
        if not _is_starting(study, storage):
            raise
        return StudyProgress(study_name(study), metric or "AP", (), None, None)
    return study_progress(log, name, now=utc_now(), metric=metric or searched_metric(log, name))


def _is_starting(study: str, storage: str) -> bool:
    """Returns whether a driver runs a study, or `run --detach` started one a moment ago."""
    from kdr.cli.logged_study import study_name
    from kdr.run.driver.sole_driver import driver_of
    from kdr.storage.layout import Storage

    place, name = Storage.at(storage), study_name(study)
    if driver_of(place, name) is not None:
        return True
    output = place.output(name)
    return output.is_file() and time.time() - output.stat().st_mtime < STARTS_WITHIN_S


def _watch(study: str, storage: str, metric: str | None, json_: bool) -> None:
    """Redraws on a terminal; elsewhere prints again whenever a trial made progress."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    before: object = None
    with (
        Live(console=console, auto_refresh=False)
        if console.is_terminal and not json_
        else _nothing_live()
    ) as live:
        while True:
            progress = _read(study, storage, metric)
            # ages change all the time; a new age alone is not printed
            reached = [(trial.key, trial.state, trial.epoch) for trial in progress.trials]
            if live is not None:
                live.update(Text(_text(progress)), refresh=True)
            elif reached != before:
                print(_json(progress) if json_ else _text(progress) + "\n", flush=True)
            before = reached
            if progress.is_over:
                return
            time.sleep(WATCH_EVERY_S)


def _nothing_live() -> Any:
    import contextlib

    return contextlib.nullcontext()


def _json(progress: "StudyProgress") -> str:
    from kdr.report.formatting import json_text

    return json_text(
        {**dataclasses.asdict(progress), "counts": progress.counts, "is_over": progress.is_over}
    )


def _text(progress: "StudyProgress") -> str:
    from kdr.cli.output import plain_table
    from kdr.report.formatting import duration

    rows = [
        [
            trial.name,
            trial.state.replace("_", " "),
            f"{trial.epoch}/{trial.epochs}",
            trial.value,
            f"{duration(trial.age_s)} ago",
            (trial.reason or "").partition("\n")[0],
        ]
        for trial in progress.trials
    ]
    columns = ["trial", "state", "epoch", progress.metric, "last row", "reason"]
    tables = [*([_arms(progress)] if progress.arms else []), plain_table(columns, rows)]
    return f"{_headline(progress)}\n" + "\n\n".join(tables)


def _arms(progress: "StudyProgress") -> str:
    """Returns a table of an ablation's arms with the number of completed seeds."""
    from kdr.cli.output import plain_table

    rows = []
    for arm in progress.arms:
        others = ", ".join(
            f"{count} {state}" for state, count in _counts(arm.counts) if state != "completed"
        )
        rows.append([arm.name, f"{arm.counts.get('completed', 0)} of {arm.num_seeds}", others])
    return plain_table(["arm", "seeds done", ""], rows)


def _counts(counts: dict[str, int]) -> list[tuple[str, int]]:
    return [(state.replace("_", " "), count) for state, count in counts.items()]


def _headline(progress: "StudyProgress") -> str:
    from kdr.report.formatting import duration

    total = f" of {progress.total}" if progress.total is not None else ""
    counts = (
        ", ".join(f"{count} {state}" for state, count in _counts(progress.counts)) or "none started"
    )
    left = (
        ""
        if progress.is_over or progress.seconds_left is None
        else f"; about {duration(progress.seconds_left)} left"
    )
    budget = f" of {progress.gpu_hours:g}" if progress.gpu_hours is not None else ""
    gpus = (
        f"; {progress.gpu_hours_used:.1f}{budget} GPU-hours used"
        if budget or progress.gpu_hours_used
        else ""
    )
    return f"{progress.study}: {len(progress.students)}{total} trials ({counts}){left}{gpus}"
