"""The sources of one cell: trials, seeds, commits, machines, and files of the log."""

from collections.abc import Mapping, Sequence

from kdr.report.arm_trials import logged_arms
from kdr.report.formatting import commit_text
from kdr.report.measures import measure_of
from kdr.report.tables.grid import Grid
from kdr.results.reader import Log
from kdr.storage.files import StoredPath


def cell_sources(
    log: Log, study: str, arm: str, metric: str, files: Mapping[str, Sequence[StoredPath]]
) -> Grid:
    """Returns the trials behind an arm's measure, one row per seed.

    Trials that are not completed are listed, but do not count towards the cell.

    Args:
        log: the trial log.
        study: name of the study.
        arm: name of the arm in the table.
        metric: a measure, such as `AP`.
        files: trial key -> files of the log.

    Raises:
        ConfigError: if the arm or the measure does not exist.
    """
    measure = measure_of(metric)
    trials = logged_arms(log, study, (measure,)).arm(arm).trials.values()
    rows = []
    for trial in trials:
        state = trial.state
        # also for a failed trial: it does not count, but a reader may ask how far it got
        value = trial.values.get(measure.name)
        rows.append(
            (
                trial.seed,
                None if value is None else value * measure.scale,
                state.state if state else "not started",
                state.epoch if state else None,
                trial.key,
                state.study if state else None,
                commit_text(state.last.commit, dirty=state.last.dirty) if state else None,
                state.last.host if state else None,
                state.last.device if state else None,
                trial.batches[0] if trial.batches else None,
                " ".join(map(str, files.get(trial.key, ()))),
            )
        )
    columns = (
        "seed",
        measure.title,
        "state",
        "epoch",
        "key",
        "ran in",
        "commit",
        "host",
        "device",
        "first batch",
        "files",
    )
    return Grid(f"{study}: {measure.title} of {arm}", columns, tuple(rows))
