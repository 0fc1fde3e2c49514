"""What a study has used, over all its sessions, from the times of its rows: hours that went by, and hours of GPUs."""

from datetime import UTC, datetime

from kdr.results.reader import Log

_NO_WORK = ("planned", "excluded", "included")
"""Events that may be written long before or after a trial trained."""


def seconds_used(log: Log, study: str) -> float:
    """Wall-clock seconds in which a study trained: the union of the times from each attempt's first row to its last."""
    seconds, end = 0.0, datetime.min.replace(tzinfo=UTC)
    for first, last in sorted(_attempts(log, study).values()):
        seconds += max(0.0, (last - max(first, end)).total_seconds())
        end = max(end, last)
    return seconds


def gpu_hours_used(log: Log, study: str) -> float:
    """GPUs that the attempts of a study held, its teacher's included, times the hours from their first row to their last."""
    held: dict[tuple[str, int], float] = {}
    for row in log.trials.select(["study", "key", "attempt", "num_gpus"]).to_pylist():
        if row["study"] == study and row["num_gpus"]:
            held[row["key"], row["attempt"]] = row["num_gpus"]
    spans = _attempts(log, study)
    return sum(num_gpus * (spans[name][1] - spans[name][0]).total_seconds() for name, num_gpus in held.items()) / 3600


def _attempts(log: Log, study: str) -> dict[tuple[str, int], tuple[datetime, datetime]]:
    """By key and attempt the times of the first row and the last."""
    spans: dict[tuple[str, int], tuple[datetime, datetime]] = {}
    events = log.trials.select(["study", "key", "attempt", "time", "event"]).to_pylist()
    epochs = log.epochs.select(["study", "key", "attempt", "time"]).to_pylist()
    for row in [row for row in events if row["event"] not in _NO_WORK] + epochs:
        if row["study"] == study:
            name, time = (row["key"], row["attempt"]), row["time"]
            first, last = spans.get(name, (time, time))
            spans[name] = (min(first, time), max(last, time))
    return spans
