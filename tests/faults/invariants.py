"""Invariants of a study's log after any fault: nothing finished is lost or doubled, attempts are
numbered.

Every fault test calls `check_log`, whether simulated or with real processes. Its counts are the
test's line in the table at the end of `pytest -m faults`."""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

from kdr.report.ranking import ranking
from kdr.results.reader import Log, read_log
from kdr.storage.layout import Storage

ENDED = frozenset({"completed", "stopped_early", "failed", "cancelled"})
_STARTS = ("started", "resumed")
_NUMBERS = (
    "AP",
    "AP50",
    "AP75",
    "step",
    "losses",
    "weighted_losses",
    "lr",
    "images_seen",
    "first_batch_hash",
)
"""Columns of an epoch that depend on nothing but the trial."""

toll = Counter[str]()
"""Counts of the running test so far: "lost", "doubled" and "left behind", and the number of
"checks"."""

Results = Mapping[str, tuple[Any, ...]]
"""Key -> everything that tables are computed from: state, last epoch, rank, metrics and the numbers
of every epoch; compared to the last bit."""


def check_log(storage: Storage, study: str, undisturbed: Results | None = None) -> Log:
    """Asserts the invariants of a study's log; for a finished study, also that it equals an
    undisturbed one.

    Args:
        storage: the study's storage.
        study: its name.
        undisturbed: `results_of` the same study without faults; None for a study that is not
            finished.
    """
    log = read_log(storage)
    toll["checks"] += 1
    none("lost", log.damaged)
    for key in log.keys_of(study):
        _check_attempts(key, _events(log, key))
        _check_epochs(key, log)
    if undisturbed is not None:
        found = results_of(storage, study)
        none("lost", {key: undisturbed[key][:2] for key in undisturbed if key not in found})
        none(
            "doubled",
            {key: found[key][:2] for key in found if key not in undisturbed},
            "not in the undisturbed study",
        )
        for key, result in undisturbed.items():
            assert found[key] == result, key
        none(
            "lost",
            {key for key in log.keys_of(study) if key not in log.states()},
            "planned and never started",
        )
        check_nothing_is_left(storage, log)
    return log


def none(kind: str, found: Collection[Any], more: str = "") -> None:
    """Counts things that must not exist, and asserts that there are none."""
    toll[kind] += len(found)
    assert not found, f"{kind}: {found} {more}"


def results_of(storage: Storage, study: str) -> Results:
    """Returns a study's results, including the teacher's."""
    log = read_log(storage)
    ranks = {trial.key: trial.rank for trial in ranking(log, study)}
    return {
        key: (
            state.state,
            state.epoch,
            ranks.get(key),
            tuple(state.metrics.values()),
            [
                _plain({name: row[name] for name in _NUMBERS})
                for row in log.epochs_of(key).to_pylist()
            ],
        )
        for key, state in log.states_of(study).items()
    }


def check_nothing_is_left(storage: Storage, log: Log) -> None:
    """Asserts that no useless file is left: checkpoints of completed trials, temporary files."""
    completed = [key for key, state in log.states().items() if state.state == "completed"]
    progress = [
        path
        for key in completed
        for path in (storage.trial(key) / "checkpoint.pt", storage.micro_batch(key))
    ]
    none("left behind", [path for path in progress if path.exists()])
    none("left behind", list(storage.local.rglob("*.tmp")))


def _events(log: Log, key: str) -> list[tuple[int, str]]:
    rows = [row for row in log.trials.to_pylist() if row["key"] == key]
    return [(row["attempt"], row["event"]) for row in rows]


def _check_attempts(key: str, events: list[tuple[int, str]]) -> None:
    starts = [attempt for attempt, event in events if event in _STARTS]
    none("doubled", _repeated(starts), f"{key}: two attempts have the same number: {events}")
    assert {attempt for attempt, _ in events} <= set(starts), (
        f"{key}: an attempt ended without a start: {events}"
    )
    for end in ENDED:
        ends = [attempt for attempt, event in events if event == end]
        none("doubled", _repeated(ends), f"{key}: an attempt ended twice: {events}")
    completed = [attempt for attempt, event in events if event == "completed"]
    none("doubled", completed[1:], f"{key}: completed more than once: {events}")
    assert not completed or max(starts) == completed[0], (
        f"{key}: started again after it was completed: {events}"
    )


def _repeated(attempts: list[int]) -> set[int]:
    return {attempt for attempt, count in Counter(attempts).items() if count > 1}


def _check_epochs(key: str, log: Log) -> None:
    epochs = log.epochs_of(key)["epoch"].to_pylist()
    none("lost", set(range(1, max(epochs, default=0))) - set(epochs), f"{key}: epochs {epochs}")
    none("doubled", _repeated(epochs), f"{key}: epochs {epochs}")
    assert all(after == before + 1 for before, after in pairwise([0, *epochs])), (
        f"{key}: epochs {epochs}"
    )
    state = log.states().get(key)
    if state is not None and state.state in ENDED - {"failed"}:
        assert len(epochs) == state.epoch, (
            f"{key}: {state.state} at epoch {state.epoch}, with epochs {epochs}"
        )


def _plain(value: Any) -> Any:
    """Converts to hashable values in which NaN equals NaN."""
    if isinstance(value, dict | list | tuple):
        return tuple(map(_plain, value.items() if isinstance(value, dict) else value))
    return "NaN" if isinstance(value, float) and math.isnan(value) else value
