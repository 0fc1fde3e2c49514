"""What lies behind one number of a table: trials, seeds, code, machines, and the files of the
log.
"""

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
    """The trials behind a measure of an arm, one row for each seed; those that are not completed
    are no part of the number.

    Args:
        log: the trial log.
        study: name of the study.
        arm: name of the arm, as the table has it.
        metric: a measure, such as `AP`.
        files: files of the log by trial key.

    Raises:
        ConfigError: if there is no such arm or measure.
    """
    measure = measure_of(metric)
    trials = logged_arms(log, study, (measure,)).arm(arm).trials.values()
    rows = []
    for trial in trials:
        state = trial.state
        value = trial.values.get(measure.name)
        rows.append(
            (
                trial.seed,
                None if value is None else value * measure.scale,
                state.state if state else "not begun",
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
