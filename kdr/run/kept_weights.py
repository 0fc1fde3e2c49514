"""Which students' weights stay on disk: of the study's best k, of all, or of none. Teachers always stay."""

import math

from kdr.config.study import Study
from kdr.results.reader import read_log
from kdr.storage import Storage


def drop_weights(storage: Storage, study: Study) -> None:
    """Removes weights and checkpoints of the study's ended trials that `keep_weights` does not keep.

    The checkpoint of an early-stopped trial counts as its weights: with it the trial can be continued to its full length,
    without it the trial starts again. Running and interrupted trials are left alone.
    """
    if study.keep_weights == "all":
        return
    metric = study.search.metric if study.search else "AP"
    log = read_log(storage, study.study)
    ended = [
        state
        for state in log.states().values()
        if state.role == "student" and state.study == study.study and state.state in ("completed", "stopped_early", "failed")
    ]
    best_first = sorted(ended, key=lambda state: _or_lowest(state.metrics.get(metric)), reverse=True)
    num_kept = 0 if study.keep_weights == "none" else study.keep_weights
    for state in best_first[num_kept:]:
        for name in ("student.pt", "student.json", "checkpoint.pt"):
            (storage.trial(state.key) / name).unlink(missing_ok=True)


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None or math.isnan(value) else value
