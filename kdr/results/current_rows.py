"""The rows of the log that count: deciding events, and epochs that no later attempt repeated."""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.results.schema import EVENTS, METRICS


def excluded_attempts(events: pa.Table) -> dict[str, int]:
    """Returns the last excluded attempt of each trial, by key.

    An exclusion ends if it is undone, or if an attempt with the same number starts after it.
    """
    balance: Counter[tuple[str, int]] = Counter()
    latest: dict[tuple[str, int], dict[str, int]] = {}
    marked = pc.unique(events.filter(pc.equal(events["event"], "excluded"))["key"])
    rows = events.filter(pc.is_in(events["key"], value_set=marked))
    rows = rows.filter(
        pc.is_in(rows["event"], value_set=pa.array(("started", "resumed", "excluded", "included")))
    )
    for key, attempt, event, time in zip(
        *_columns(rows, "key", "attempt", "event", "time"), strict=True
    ):
        # Exclusions are counted rather than ordered by time, because a clock may have been set back
        # between one and its undoing.
        balance[key, attempt] += {"excluded": 1, "included": -1}.get(event, 0)
        kind = "excluded" if event == "excluded" else "started"
        if event != "included":
            times = latest.setdefault((key, attempt), {})
            times[kind] = max(time, times.get(kind, time))
    excluded: dict[str, int] = {}
    for (key, attempt), count in balance.items():
        times = latest[key, attempt] if count > 0 else {}
        if count > 0 and times.get("started", -math.inf) <= times["excluded"]:
            excluded[key] = max(attempt, excluded.get(key, 0))
    return excluded


def deciding_rows(events: pa.Table, excluded: Mapping[str, int]) -> list[int]:
    """Returns the index of the event that decides the state of each trial, in the order of the log.

    Among the events of the last attempt, it is the last in the order of `EVENTS`. Times only decide
    between equal events: the processes that write the events of an attempt may be on nodes whose
    clocks differ, and a clock may be set back.
    """
    columns = _columns(events, "key", "attempt", "event", "time", "epoch")
    best: dict[str, tuple[Any, ...]] = {}
    for index, (key, attempt, event, time, epoch) in enumerate(zip(*columns, strict=True)):
        # an excluded attempt may still be running: its later events do not end the exclusion
        if event == "included" or (event == "excluded" and attempt != excluded.get(key)):
            continue
        order = (attempt, EVENTS.index(event), time, epoch or 0, index)
        if key not in best or order > best[key]:
            best[key] = order
    return [order[-1] for order in best.values()]


def current_rows(epochs: pa.Table, excluded: Mapping[str, int]) -> pa.Array:
    """Returns the indices of the epochs that count, by key and epoch.

    An attempt that starts at epoch e replaces the epochs of earlier attempts from e on.

    Args:
        epochs: rows of the table `epochs`.
        excluded: key -> last attempt that does not count; earlier ones do not count either.
    """
    # Most trials have one attempt and each epoch once: for those, sorting in Arrow is enough. Only
    # the others are resolved row by row in Python, which is far slower.
    keys, intricate = epochs["key"], _intricate_keys(epochs, excluded)
    plain = pc.invert(pc.is_in(keys, value_set=intricate))
    others = pc.indices_nonzero(pc.invert(plain))
    chosen = _resolved(epochs.select(["key", "attempt", "epoch", "time"]).take(others), excluded)
    rows = pa.concat_arrays([pc.indices_nonzero(plain), others.take(chosen)])
    order = pc.sort_indices(
        epochs.select(["key", "epoch"]).take(rows),
        sort_keys=[("key", "ascending"), ("epoch", "ascending")],
    )
    return rows.take(order)


def _intricate_keys(epochs: pa.Table, excluded: Mapping[str, int]) -> pa.Array:
    """Returns the keys of trials with several attempts, repeated epochs or exclusions."""
    sums = epochs.group_by("key").aggregate(
        [("attempt", "min"), ("attempt", "max"), ("epoch", "count"), ("epoch", "count_distinct")]
    )
    one_attempt = pc.equal(sums["attempt_min"], sums["attempt_max"])
    each_once = pc.equal(sums["epoch_count"], sums["epoch_count_distinct"])
    counts = pc.invert(pc.is_in(sums["key"], value_set=pa.array(list(excluded), pa.string())))
    is_plain = pc.and_(pc.and_(one_attempt, each_once), counts)
    return sums["key"].filter(pc.invert(is_plain)).combine_chunks()


def _resolved(epochs: pa.Table, excluded: Mapping[str, int]) -> pa.Array:
    columns = _columns(epochs, "key", "attempt", "epoch", "time")
    # key -> attempt -> epoch -> (time, row)
    latest: dict[str, dict[int, dict[int, tuple[Any, int]]]] = {}
    for index, (key, attempt, epoch, time) in enumerate(zip(*columns, strict=True)):
        if attempt <= excluded.get(key, 0):
            continue
        rows = latest.setdefault(key, {}).setdefault(attempt, {})
        if epoch not in rows or (time, index) > rows[epoch]:
            rows[epoch] = (time, index)
    return pa.array([row for attempts in latest.values() for row in _joined(attempts)], pa.uint64())


def _joined(attempts: dict[int, dict[int, tuple[Any, int]]]) -> Iterable[int]:
    """Returns the row indices of one trial's epochs in order: from each attempt, the epochs before
    the first epoch of the next attempt.
    """
    rows: dict[int, int] = {}
    first = None
    for attempt in sorted(attempts, reverse=True):
        rows |= {
            epoch: row
            for epoch, (_, row) in attempts[attempt].items()
            if first is None or epoch < first
        }
        first = min(rows)
    return (rows[epoch] for epoch in sorted(rows))


def current_trials(deciding: pa.Table, draws: Mapping[str, str], epochs: pa.Table) -> pa.Table:
    """Returns a table with a row for each deciding event: `key`, `epoch`, the metrics,
    `parameters`.

    Args:
        deciding: the events that decide the trials' states.
        draws: key -> the last draw of a search.
        epochs: the epochs that count, by key and epoch.
    """
    reached = last_epochs(epochs)
    reached = reached.take(pc.index_in(deciding["key"], value_set=reached["key"]))
    # An attempt that started from scratch must not get the epochs of earlier attempts.
    is_own = pc.or_(
        pc.not_equal(deciding["event"], "started"),
        pc.equal(deciding["attempt"], reached["attempt"]),
    )
    has_metrics = functools.reduce(pc.or_, (pc.is_valid(deciding[name]) for name in METRICS))
    return pa.table(
        {
            "key": deciding["key"],
            "epoch": pc.coalesce(deciding["epoch"], _where(is_own, reached["epoch"]), 0),
            **{
                name: pc.if_else(has_metrics, deciding[name], _where(is_own, reached[name]))
                for name in METRICS
            },
            "parameters": pa.array(
                [draws.get(key) for key in deciding["key"].to_pylist()], pa.string()
            ),
        }
    )


def _where(wanted: pa.ChunkedArray, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(wanted, values, pa.scalar(None, values.type))


def last_draws(events: pa.Table) -> dict[str, str]:
    """Returns the last draw of a search for each trial, as JSON, by key."""
    drawn = events.filter(pc.is_valid(events["parameters"])).sort_by(
        [("time", "ascending"), ("parameters", "ascending")]
    )
    return dict(zip(drawn["key"].to_pylist(), drawn["parameters"].to_pylist(), strict=True))


def last_epochs(epochs: pa.Table) -> pa.Table:
    """Returns the last epoch of each key with its attempt, and the metrics of the last evaluated
    epoch.

    Args:
        epochs: the epochs that count, by key and epoch.
    """
    reached = _last_of_each(epochs, "key", "attempt", "epoch")
    evaluated = _last_of_each(epochs.filter(pc.is_valid(epochs["AP"])), "key", *METRICS)
    evaluated = evaluated.take(pc.index_in(reached["key"], value_set=evaluated["key"]))
    for name in METRICS:
        reached = reached.append_column(name, evaluated[name])
    return reached


def first_of_each(table: pa.Table, *columns: str) -> pa.Table:
    """Returns the distinct values of some columns, in no particular order, with the first `row` of
    each.
    """
    rows = table.select(list(columns)).append_column("row", pa.array(range(len(table)), pa.int64()))
    found = rows.group_by(list(columns)).aggregate([("row", "min")])
    return found.rename_columns({"row_min": "row"})


def _last_of_each(epochs: pa.Table, *columns: str) -> pa.Table:
    """Returns the last row of each key; rows must be sorted by key."""
    runs = pc.run_end_encode(epochs["key"].combine_chunks())
    return epochs.select(list(columns)).take(pc.subtract(runs.run_ends, 1))


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    """Returns columns as Python values, with times in microseconds: a datetime object for each row
    would take longer than everything else here.
    """
    return [
        (table[name].cast(pa.int64()) if name == "time" else table[name]).to_pylist()
        for name in names
    ]
