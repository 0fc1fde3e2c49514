"""Hours and GPU-hours that a study has used over all its runs, from the times of its rows."""

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.results.reader import Log

_NO_WORK = ("planned", "excluded", "included")
"""Events that are not written while a trial trains, but possibly long before or after."""


def seconds_used(log: Log, study: str) -> float:
    """Returns the wall-clock seconds during which a study trained: the union of the spans from the
    first row of an attempt to its last.
    """
    # where attempts overlap, the later one counts only from the end of the earlier one
    seconds, end = 0.0, datetime.min.replace(tzinfo=UTC)
    for first, last in sorted(_attempts(log, study).values()):
        seconds += max(0.0, (last - max(first, end)).total_seconds())
        end = max(end, last)
    return seconds


def gpu_hours_used(log: Log, study: str) -> float:
    """Returns the GPU-hours of a study, including its teacher's: the GPUs that each attempt held,
    times the hours from its first row to its last.
    """
    rows = log.trials.filter(
        pc.and_(pc.equal(log.trials["study"], study), pc.greater(log.trials["num_gpus"], 0))
    )
    held = dict(
        zip(
            zip(*_lists(rows, "key", "attempt"), strict=True),
            rows["num_gpus"].to_pylist(),
            strict=True,
        )
    )
    spans = _attempts(log, study)
    seconds = sum(
        num_gpus * (spans[name][1] - spans[name][0]).total_seconds()
        for name, num_gpus in held.items()
    )
    return float(seconds) / 3600


def _attempts(log: Log, study: str) -> dict[tuple[str, int], tuple[datetime, datetime]]:
    """Returns the times of the first and last row of each attempt, by key and attempt."""
    worked = log.trials.filter(
        pc.invert(pc.is_in(log.trials["event"], value_set=pa.array(_NO_WORK)))
    )
    columns = ["key", "attempt", "time"]
    parts = [
        table.filter(pc.equal(table["study"], study)).select(columns)
        for table in (worked, log.epochs)
    ]
    spans = (
        pa.concat_tables(parts)
        .group_by(["key", "attempt"])
        .aggregate([("time", "min"), ("time", "max")])
    )
    keys, attempts, first, last = _lists(spans, "key", "attempt", "time_min", "time_max")
    return dict(zip(zip(keys, attempts, strict=True), zip(first, last, strict=True), strict=True))


def _lists(table: pa.Table, *columns: str) -> list[list[Any]]:
    return [table[name].to_pylist() for name in columns]
