"""Which rows of the log count."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from kdr.results.current_rows import current_rows, last_epochs
from kdr.results.schema import SCHEMAS, EpochRow, to_table

START = datetime(2026, 1, 1, tzinfo=UTC)
RowSpec = tuple[str, int, int, int]
"""Key, attempt, epoch, and time in seconds."""
ROWS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3)),
    max_size=14,
)


def table_of(rows: list[RowSpec]) -> pa.Table:
    made = [
        EpochRow(
            study="s",
            key=key,
            attempt=attempt,
            epoch=epoch,
            step=0,
            time=START + timedelta(seconds=time),
            AP=None if index % 3 else 0.1 * index,
        )
        for index, (key, attempt, epoch, time) in enumerate(rows)
    ]
    return to_table(made) if made else SCHEMAS["epochs"].empty_table()


def by_definition(rows: list[RowSpec], excluded: dict[str, int]) -> list[int]:
    """Returns the rows that count, by the definition: for each epoch of a trial, the last attempt
    with this epoch, unless a later attempt started at or before it.
    """
    chosen = []
    for key in sorted({row[0] for row in rows}):
        own = [
            (index, *row[1:])
            for index, row in enumerate(rows)
            if row[0] == key and row[1] > excluded.get(key, 0)
        ]
        starts = {
            attempt: min(epoch for _, at, epoch, _ in own if at == attempt)
            for _, attempt, _, _ in own
        }
        for epoch in sorted({row[2] for row in own}):
            counts = [
                row
                for row in own
                if row[2] == epoch
                and not any(later > row[1] and first <= epoch for later, first in starts.items())
            ]
            chosen += [max(counts, key=lambda row: (row[1], row[3], row[0]))[0]] if counts else []
    return chosen


@given(ROWS, st.dictionaries(st.sampled_from("abc"), st.integers(1, 3), max_size=2))
def test_an_attempt_replaces_all_earlier_epochs_from_its_first_on(
    rows: list[RowSpec], excluded: dict[str, int]
) -> None:
    assert current_rows(table_of(rows), excluded).to_pylist() == by_definition(rows, excluded)


@given(ROWS)
def test_the_last_epoch_and_the_last_evaluation_of_each_trial_are_found(
    rows: list[RowSpec],
) -> None:
    epochs = table_of(rows)
    current = epochs.take(current_rows(epochs, {}))
    found = {row["key"]: row for row in last_epochs(current).to_pylist()}
    listed = current.select(["key", "attempt", "epoch", "AP"]).to_pylist()
    assert {key: row["epoch"] for key, row in found.items()} == {
        row["key"]: row["epoch"] for row in listed
    }
    assert {key: row["AP"] for key, row in found.items()} == {
        **dict.fromkeys(found),
        **{row["key"]: row["AP"] for row in listed if row["AP"] is not None},
    }
