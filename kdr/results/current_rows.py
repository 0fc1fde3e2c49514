"""Which rows of the log count: events that decide a trial's state, and epochs that no later attempt
has done again.
"""

import functools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.results.schema import EVENTS, METRICS


def excluded_attempts(events: pa.Table) -> dict[str, int]:
    """By key the last attempt whose exclusion is in force: neither undone nor followed by a new
    start of the same number.
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
        # exclusions are counted, since clocks can be set back between one and its undoing
        balance[key, attempt] += {"excluded": 1, "included": -1}.get(event, 0)
        kind = "excluded" if event == "excluded" else "begun"
        if event != "included":
            times = latest.setdefault((key, attempt), {})
            times[kind] = max(time, times.get(kind, time))
    excluded: dict[str, int] = {}
    for (key, attempt), count in balance.items():
        times = latest[key, attempt] if count > 0 else {}
        if count > 0 and times.get("begun", -math.inf) <= times["excluded"]:
            excluded[key] = max(attempt, excluded.get(key, 0))
    return excluded


def deciding_rows(events: pa.Table, excluded: Mapping[str, int]) -> list[int]:
    """For each key the index of the event that decides its state, keys in the order of the log.

    Of the last attempt it is the event that comes last in a trial's life (`EVENTS`). Times decide
    between equal events only: the processes that write those of one attempt may be on machines
    whose clocks differ, and a clock may be set back.
    """
    columns = _columns(events, "key", "attempt", "event", "time", "epoch")
    best: dict[str, tuple[Any, ...]] = {}
    for index, (key, attempt, event, time, epoch) in enumerate(zip(*columns, strict=True)):
        # whatever an excluded attempt goes on to do, it stays excluded
        if event == "included" or (event == "excluded" and attempt != excluded.get(key)):
            continue
        order = (attempt, EVENTS.index(event), time, epoch or 0, index)
        if key not in best or order > best[key]:
            best[key] = order
    return [order[-1] for order in best.values()]


def current_rows(epochs: pa.Table, excluded: Mapping[str, int]) -> pa.Array:
    """Indices of the epochs that count, by key and epoch. An attempt that begins at epoch e
    replaces e and all after it.

    Args:
        epochs: rows of the table `epochs`.
        excluded: by key the last attempt that does not count; nor do those before it.
    """
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
    """Trials with several attempts or with rows of one epoch twice, which take more than
    sorting.
    """
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
    """Row indices of one trial's epochs in order: of each attempt those before the next one's
    first.
    """
    rows: dict[int, int] = {}
    begun = None
    for attempt in sorted(attempts, reverse=True):
        rows |= {
            epoch: row
            for epoch, (_, row) in attempts[attempt].items()
            if begun is None or epoch < begun
        }
        begun = min(rows)
    return (rows[epoch] for epoch in sorted(rows))


def current_trials(deciding: pa.Table, draws: Mapping[str, str], epochs: pa.Table) -> pa.Table:
    """What is known of each trial now: `key`, `epoch`, the metrics, and `parameters`, a row for
    each deciding event.

    Args:
        deciding: the events that decide the trials' states.
        draws: by key the last draw of a search.
        epochs: the epochs that count, by key and epoch.
    """
    reached = last_epochs(epochs)
    reached = reached.take(pc.index_in(deciding["key"], value_set=reached["key"]))
    # begun anew: the epochs of earlier attempts are not its own
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
    """By key the last draw of a search, as JSON."""
    drawn = events.filter(pc.is_valid(events["parameters"])).sort_by(
        [("time", "ascending"), ("parameters", "ascending")]
    )
    return dict(zip(drawn["key"].to_pylist(), drawn["parameters"].to_pylist(), strict=True))


def last_epochs(epochs: pa.Table) -> pa.Table:
    """For each key the last epoch with its attempt, and the metrics of the last epoch that was
    evaluated.

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
    """The combinations of values that some columns have, in no order, and the `row` in which each
    comes first.
    """
    rows = table.select(list(columns)).append_column("row", pa.array(range(len(table)), pa.int64()))
    found = rows.group_by(list(columns)).aggregate([("row", "min")])
    return found.rename_columns({"row_min": "row"})


def _last_of_each(epochs: pa.Table, *columns: str) -> pa.Table:
    """The last row of each key."""
    runs = pc.run_end_encode(epochs["key"].combine_chunks())
    return epochs.select(list(columns)).take(pc.subtract(runs.run_ends, 1))


def _columns(table: pa.Table, *names: str) -> list[list[Any]]:
    """Columns as Python values, times as microseconds: making a datetime of each would cost more
    than all the rest.
    """
    return [
        (table[name].cast(pa.int64()) if name == "time" else table[name]).to_pylist()
        for name in names
    ]
