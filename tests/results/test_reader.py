"""Reading the log: trial states, current epochs, and files that cannot be read."""

import dataclasses
import errno
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.errors import StorageError
from kdr.results import schema
from kdr.results.fragments import Listing, list_folder
from kdr.results.reader import Log, known_keys, read_log
from kdr.results.schema import (
    EVENTS,
    SCHEMAS,
    ArmRow,
    EpochRow,
    Event,
    Row,
    TableName,
    TrialEvent,
    to_table,
)
from kdr.results.writer import LogWriter
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from tests.conftest import ExampleLog, local

START = datetime(2026, 1, 1, tzinfo=UTC)


def event(
    name: Event, *, key: str = "k", study: str = "s", at: int = 0, **columns: Any
) -> TrialEvent:
    return TrialEvent(
        study=study,
        key=key,
        event=name,
        config="{}",
        time=START + timedelta(seconds=at),
        **columns,
    )


def epoch(
    number: int, *, attempt: int = 1, key: str = "k", at: int = 0, **columns: Any
) -> EpochRow:
    when = START + timedelta(seconds=at)
    return EpochRow(
        study="s", key=key, attempt=attempt, epoch=number, step=number, time=when, **columns
    )


def log_of(
    events: Sequence[TrialEvent] = (), epochs: Sequence[EpochRow] = (), arms: Sequence[ArmRow] = ()
) -> Log:
    return Log(_table("trials", events), _table("epochs", epochs), _table("arms", arms))


def _table(name: TableName, rows: Sequence[Row]) -> pa.Table:
    return to_table(rows) if rows else SCHEMAS[name].empty_table()


def fragment(storage: Storage, name: str = "trials", study: str = "s") -> LocalPath:
    [path] = (local(storage.log) / name / f"study={study}").glob("part-*.parquet")
    return path


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    log = read_log(Storage.at(tmp_path / "nowhere"))
    assert (log.trials.num_rows, log.epochs.num_rows, log.arms.num_rows, log.damaged) == (
        0,
        0,
        0,
        (),
    )
    assert log.states() == {}
    assert known_keys(log) == frozenset()
    assert log.studies() == ()
    assert log.epochs_of("k").num_rows == 0


def test_the_last_attempt_decides_whatever_the_clocks_say() -> None:
    log = log_of(
        [
            event("completed", attempt=1, at=100, AP=0.3),
            event("failed", attempt=2, at=50, reason="why"),
        ]
    )
    assert log.states()["k"].state == "failed"
    assert known_keys(log) == frozenset()


def test_a_late_plan_of_another_study_does_not_hide_a_result() -> None:
    log = log_of(
        [
            event("started", at=1),
            event("completed", at=2, AP=0.3),
            event("planned", study="other", at=3),
        ]
    )
    assert log.states()["k"].state == "completed"
    assert known_keys(log) == {"k"}


def test_events_of_one_instant_follow_the_life_of_a_trial() -> None:
    names: list[Event] = ["completed", "planned", "started"]
    assert log_of([event(name, at=1) for name in names]).states()["k"].state == "completed"


def test_the_end_of_an_attempt_decides_although_clocks_differ() -> None:
    resumed = event("resumed", attempt=2, at=100)
    ends: list[Event] = ["completed", "stopped_early", "failed", "interrupted"]
    for end in ends:
        assert (
            log_of([event("started"), resumed, event(end, attempt=2, at=50)])
            .states()["k"]
            .state.startswith(end)
        )
    ended = event("completed", attempt=2, at=50, AP=0.3)
    assert known_keys(
        log_of([event("started"), resumed, ended, event("interrupted", attempt=2, at=200)])
    ) == {"k"}


def test_epochs_of_a_later_attempt_count_although_its_clock_was_set_back() -> None:
    rows = [epoch(number, at=100 + number, AP=0.1) for number in (1, 2, 3)]
    rows += [epoch(number, attempt=2, at=number, AP=0.2) for number in (3, 4)]
    epochs = log_of([event("started"), event("resumed", attempt=2, at=1)], rows).epochs_of("k")
    assert list(zip(epochs["attempt"].to_pylist(), epochs["epoch"].to_pylist(), strict=True)) == [
        (1, 1),
        (1, 2),
        (2, 3),
        (2, 4),
    ]


def test_the_time_of_rows_does_not_go_back_with_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = schema.utc_now()

    class SetBack(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(schema, "datetime", SetBack)
    assert before <= schema.utc_now() < before + timedelta(minutes=1)
    assert schema.later_than(before + timedelta(hours=2)) == before + timedelta(
        hours=2, microseconds=1
    )


def test_events_of_a_newer_version_are_ignored() -> None:
    table = log_of([event("started", at=1), event("completed", at=2)]).trials
    strange = table.set_column(
        table.schema.names.index("event"),
        table.schema.field("event"),
        pa.array(["started", "judged"]),
    )
    log = Log(strange, SCHEMAS["epochs"].empty_table(), SCHEMAS["arms"].empty_table())
    assert log.states()["k"].state == "running"


def test_an_excluded_attempt_stays_excluded_while_it_still_runs() -> None:
    events = [
        event("started"),
        event("completed", at=1, epoch=1, AP=0.5),
        event("excluded", at=2, reason="why"),
    ]
    for later in ([], [event("completed", at=9, epoch=2, AP=0.6)]):
        log = log_of([*events, *later], [epoch(1, AP=0.5)])
        state = log.states()["k"]
        assert (state.state, state.epoch, state.metrics["AP"], state.last.reason) == (
            "excluded",
            0,
            None,
            "why",
        )
        assert known_keys(log) == frozenset()
        assert log.epochs_of("k").num_rows == 0


def test_an_event_undoes_an_exclusion() -> None:
    events = [
        event("completed", at=1, epoch=1, AP=0.5),
        event("excluded", at=2),
        event("included", at=3),
    ]
    log = log_of(events, [epoch(1, AP=0.5)])
    assert (log.states()["k"].state, log.states()["k"].metrics["AP"]) == ("completed", 0.5)
    assert log.epochs_of("k").num_rows == 1
    assert log_of([*events, event("excluded", at=4)]).states()["k"].state == "excluded"


def test_a_new_attempt_at_an_excluded_trial_counts() -> None:
    events = [event("completed", at=1, epoch=2, AP=0.5), event("excluded", at=2)]
    again = [
        event("started", attempt=2, at=3),
        event("completed", attempt=2, at=4, epoch=2, AP=0.4),
    ]
    old, new = [epoch(1, AP=0.1), epoch(2, AP=0.5)], [epoch(1, attempt=2, at=3, AP=0.3)]
    log = log_of([*events, again[0]], [*old, *new])
    assert (
        log.states()["k"].state,
        log.states()["k"].epoch,
        log.epochs_of("k")["AP"].to_pylist(),
    ) == ("running", 1, [0.3])
    assert log_of([*events, *again]).states()["k"].metrics["AP"] == 0.4


def test_an_exclusion_ends_at_a_later_start_of_the_same_attempt_number() -> None:
    """Attempts are counted in the trial's folder, which a user may have deleted."""
    log = log_of(
        [
            event("completed", at=1),
            event("excluded", at=2),
            event("started", at=3),
            event("completed", at=4, AP=0.4),
        ]
    )
    assert (log.states()["k"].state, log.states()["k"].metrics["AP"]) == ("completed", 0.4)


def test_a_running_trial_shows_its_last_epoch_and_its_last_evaluation() -> None:
    log = log_of([event("started")], [epoch(1, AP=0.1), epoch(2, AP=0.2), epoch(3)])
    state = log.states()["k"]
    assert (state.state, state.epoch, state.metrics["AP"]) == ("running", 3, 0.2)


def test_a_restarted_trial_does_not_show_earlier_epochs() -> None:
    before = [event("completed", at=1, epoch=2, AP=0.5), event("started", attempt=2, at=2)]
    epochs = [epoch(1, AP=0.1), epoch(2, AP=0.5)]
    assert log_of(before, epochs).states()["k"].epoch == 0
    state = log_of(before, [*epochs, epoch(1, attempt=2, AP=0.2)]).states()["k"]
    assert (state.epoch, state.metrics["AP"]) == (1, 0.2)


def test_the_draw_of_a_search_is_kept_by_a_later_run_without_one() -> None:
    log = log_of(
        [event("started", at=1, parameters='{"a": 1}'), event("completed", at=2, attempt=2)]
    )
    assert log.states()["k"].parameters == '{"a": 1}'


def test_a_resumed_trial_keeps_the_epochs_before_it_resumed() -> None:
    rows = [epoch(number, AP=0.1) for number in (1, 2, 3)] + [
        epoch(number, attempt=2, AP=0.2) for number in (3, 4)
    ]
    epochs = log_of([], rows).epochs_of("k")
    assert epochs["epoch"].to_pylist() == [1, 2, 3, 4]
    assert epochs["attempt"].to_pylist() == [1, 1, 2, 2]


def test_a_repeated_trial_shows_no_epochs_of_a_longer_earlier_attempt() -> None:
    rows = [epoch(number) for number in (1, 2, 3, 4)] + [epoch(1, attempt=2)]
    assert log_of([], rows).epochs_of("k")["attempt"].to_pylist() == [2]


def test_a_repeated_row_counts_once() -> None:
    rows = [epoch(1, at=1, AP=0.1), epoch(1, at=2, AP=0.2)]
    assert log_of([], rows).epochs_of("k")["AP"].to_pylist() == [0.2]


def test_a_study_may_use_trials_of_another_study(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with LogWriter(storage, "s") as first:
        first.event(event("completed", key="shared", AP=0.4))
        first.event(event("completed", key="own"))
        first.epoch(epoch(1, key="shared"))
        first.epoch(epoch(1, key="own"))
    LogWriter(storage, "second").arms(
        [ArmRow(study="second", key="shared", arm="a"), ArmRow(study="second", key="new", arm="b")]
    )
    log = read_log(storage, "second")
    assert log.keys_of("second") == ("shared", "new")
    assert list(log.states_of("second")) == ["shared"]
    assert log.states()["shared"].study == "s"
    assert log.epochs["key"].to_pylist() == ["shared"]
    assert read_log(storage).studies() == ("s", "second")


def test_a_study_name_is_not_a_path(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed"))
    assert read_log(storage, "../study=s").trials.num_rows == 0
    assert read_log(storage, "*").trials.num_rows == 0


def test_a_truncated_fragment_is_reported_and_the_rest_is_read(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed", key="torn"))
    torn = fragment(storage)
    content = torn.read_bytes()
    LogWriter(storage, "s").event(event("completed", key="whole"))
    for length in (0, 3, len(content) // 2, len(content) - 1):
        torn.write_bytes(content[:length])
        log = read_log(storage)
        assert list(log.states()) == ["whole"]
        assert log.damaged == (torn,)


def test_a_flipped_bit_is_reported_as_damage(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed", AP=0.3))
    path = fragment(storage)
    content = path.read_bytes()
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    end = pq.read_metadata(path).serialized_size
    for place in range(start, len(content) - end - 8, 97):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        log = read_log(storage)
        assert log.damaged == (path,) or log.states()["k"].metrics["AP"] == 0.3


def test_a_file_that_the_storage_cannot_read_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its rows, its trials would run again."""
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed"))

    def unreachable(*_args: Any, **_options: Any) -> NoReturn:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(pq, "ParquetFile", unreachable)
    with pytest.raises(StorageError, match=r"part-.*: cannot be read \(.*Stale file handle"):
        read_log(storage)


def test_only_a_folder_that_changes_while_it_is_read_is_listed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, folders = Storage.at(tmp_path), []
    for study in ("a", "b", "c"):
        LogWriter(storage, study).event(event("completed", study=study, key=study))

    def list_then_change(folder: StoredPath, table: TableName) -> Listing:
        listing = list_folder(folder, table)
        if folder.name == "study=b" and folder.name not in folders:
            local(listing.fragments[0]).rename(local(folder) / "part-renamed.parquet")
        folders.append(folder.name)
        return listing

    monkeypatch.setattr("kdr.results.reader.list_folder", list_then_change)
    log = read_log(storage)
    assert (log.trials["key"].to_pylist(), log.damaged) == (["a", "b", "c"], ())
    assert sorted(folders) == ["study=a", "study=b", "study=b", "study=c"]


def test_foreign_files_are_ignored(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed"))
    folder = fragment(storage).parent
    (folder / ".part-x.parquet-abc.tmp").write_bytes(b"half a file")
    (folder / "notes.txt").write_text("hello")
    (folder.parent / "README").write_text("hello")
    assert read_log(storage).damaged == ()
    foreign, wrong_table = folder / "part-foreign.parquet", folder / "part-wrong.parquet"
    pq.write_table(pa.table({"key": ["x"]}), foreign)
    pq.write_table(to_table([ArmRow(study="s", key="x", arm="a")]), wrong_table)
    log = read_log(storage)
    assert list(log.states()) == ["k"]
    assert set(log.damaged) == {foreign, wrong_table}


def test_a_newer_version_with_more_columns_is_readable(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed", AP=0.3))
    path = fragment(storage)
    table = pq.read_table(path, partitioning=None)
    newer = table.append_column("mood", pa.array(["good"])).replace_schema_metadata(
        {**table.schema.metadata, b"kdr.schema_version": b"99"}
    )
    pq.write_table(newer, path)
    log = read_log(storage)
    assert log.damaged == ()
    assert log.states()["k"].metrics["AP"] == 0.3
    assert "mood" not in log.trials.schema.names


def test_an_older_version_without_optional_columns_is_readable(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed", AP=0.3, device="a GPU"))
    path = fragment(storage)
    pq.write_table(
        pq.read_table(path, partitioning=None).drop_columns(["device", "versions"]), path
    )
    state = read_log(storage).states()["k"]
    assert (state.metrics["AP"], state.last.device, state.last.versions) == (0.3, None, None)


def test_a_file_without_a_required_column_is_damaged(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("completed"))
    path = fragment(storage)
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["key"]), path)
    assert read_log(storage).damaged == (path,)


STUDY = st.sampled_from(["s", "other"])
AP = st.sampled_from([None, 0.25, 0.5])
EVENT = st.builds(
    event,
    st.sampled_from([name for name in EVENTS if name != "included"]),
    study=STUDY,
    key=st.sampled_from(["a", "b", "c"]),
    at=st.integers(0, 6),
    attempt=st.integers(1, 3),
    parameters=st.sampled_from([None, '{"x": 1}', '{"x": 2}']),
)
ENDED = st.builds(
    event,
    st.sampled_from(["started", "resumed", "interrupted", "failed", "completed"]),
    key=st.sampled_from(["a", "b"]),
    attempt=st.integers(1, 3),
    epoch=st.one_of(st.none(), st.integers(0, 3)),
    AP=AP,
)
EPOCH = st.builds(
    epoch,
    st.integers(1, 5),
    key=st.sampled_from(["a", "b", "c"]),
    attempt=st.integers(1, 3),
    AP=st.just(0.5),
)


def distinct(row: TrialEvent | EpochRow) -> tuple[Any, ...]:
    return (
        row.key,
        row.attempt,
        row.time,
        getattr(row, "event", None),
        getattr(row, "epoch", None),
    )


@given(
    st.lists(EVENT, unique_by=distinct, min_size=1),
    st.lists(EPOCH, unique_by=distinct),
    st.randoms(use_true_random=False),
)
def test_the_order_of_rows_and_fragments_does_not_matter(
    events: list[TrialEvent], epochs: list[EpochRow], shuffler: random.Random
) -> None:
    straight = log_of(events, epochs)
    mixed_events, mixed_epochs = list(events), list(epochs)
    shuffler.shuffle(mixed_events)
    shuffler.shuffle(mixed_epochs)
    mixed = log_of(mixed_events, mixed_epochs)
    assert mixed.states() == straight.states()
    assert mixed.current_epochs.equals(straight.current_epochs)


@given(st.lists(EVENT, min_size=1))
def test_the_state_is_that_of_the_last_attempt(events: list[TrialEvent]) -> None:
    for key, state in log_of(events).states().items():
        own = [row for row in events if row.key == key]
        assert state.attempt == max(row.attempt for row in own)
        assert state.last in [
            dataclasses.replace(row) for row in own if row.attempt == state.attempt
        ]


EVALUATED = st.builds(
    epoch, st.integers(1, 3), key=st.sampled_from(["a", "b"]), attempt=st.integers(1, 3), AP=AP
)


@given(st.lists(ENDED, min_size=1), st.lists(EVALUATED, unique_by=distinct))
def test_a_state_has_the_values_of_its_event_or_else_of_the_epochs(
    events: list[TrialEvent], epochs: list[EpochRow]
) -> None:
    log = log_of(events, epochs)
    for key, state in log.states().items():
        rows = log.epochs_of(key).to_pylist()
        if state.last.event == "started" and (not rows or rows[-1]["attempt"] != state.attempt):
            rows = []  # started from scratch
        evaluated = [row["AP"] for row in rows if row["AP"] is not None]
        assert state.epoch == (
            state.last.epoch if state.last.epoch is not None else rows[-1]["epoch"] if rows else 0
        )
        assert state.metrics["AP"] == (
            state.last.AP if state.last.AP is not None else evaluated[-1] if evaluated else None
        )


@given(
    st.lists(EVENT),
    st.lists(
        st.builds(ArmRow, study=STUDY, key=st.sampled_from(["a", "b", "c"]), arm=st.just("x"))
    ),
)
def test_a_study_uses_the_trials_of_its_arms_and_those_it_ran(
    events: list[TrialEvent], arms: list[ArmRow]
) -> None:
    log = log_of(events, arms=arms)
    used = [(arm.study, arm.key) for arm in arms] + [(event.study, event.key) for event in events]
    assert log.studies() == tuple(sorted({name for name, _ in used}))
    for study in ("s", "other", "none"):
        assert log.keys_of(study) == tuple(
            dict.fromkeys(key for name, key in used if name == study)
        )


@given(st.lists(EPOCH, unique_by=distinct, min_size=1))
def test_epochs_increase_and_attempts_never_decrease(epochs: list[EpochRow]) -> None:
    log = log_of([], epochs)
    for key in {row.key for row in epochs}:
        found = log.epochs_of(key)
        numbers, attempts = found["epoch"].to_pylist(), found["attempt"].to_pylist()
        assert numbers == sorted(set(numbers))
        assert attempts == sorted(attempts)
        last = max(row.attempt for row in epochs if row.key == key)
        assert {row.epoch for row in epochs if row.key == key and row.attempt == last} <= set(
            numbers
        )


def test_ten_thousand_rows_are_resolved_in_two_seconds() -> None:
    rows = [
        epoch(number, key=f"k{trial}", AP=0.1) for trial in range(500) for number in range(1, 21)
    ]
    log = log_of([event("completed", key=f"k{trial}") for trial in range(500)], rows)
    begin = time.perf_counter()
    assert len(log.states()) == 500
    assert time.perf_counter() - begin < 2


def test_the_arms_of_an_ablation_are_those_of_its_last_run() -> None:
    def arm(name: str, *, config: str, at: int, levels: str | None = "{}") -> ArmRow:
        when = START + timedelta(seconds=at)
        return ArmRow(
            study="s", key=f"k-{name}", arm=name, study_config=config, levels=levels, time=when
        )

    first = [arm("baseline", config="one", at=0), arm("old", config="one", at=0)]
    then = [arm("baseline", config="two", at=5), arm("new", config="two", at=5)]
    by_hand = arm("trial-0001", config="two", at=9, levels=None)
    assert [row["arm"] for row in log_of(arms=[*first, *then, by_hand]).ablation_arms_of("s")] == [
        "baseline",
        "new",
    ]
    assert log_of(arms=[by_hand]).ablation_arms_of("s") == []


def test_the_log_of_a_study_has_other_studies_rows_of_its_trials(
    example_log: ExampleLog,
) -> None:
    for study, key in (("one", "a"), ("two", "b"), ("three", "c")):
        other = dataclasses.replace(example_log, study=study)
        other.trial(key, AP=0.3)
    LogWriter(example_log.storage, "one").arms([ArmRow(study="one", key="b", arm="shared")])
    log, everything = read_log(example_log.storage, "one"), read_log(example_log.storage)
    assert log.keys_of("one") == ("a", "b")
    assert log.states_of("one") == everything.states_of("one")
    assert set(log.trials["key"].to_pylist()) == set(log.epochs["key"].to_pylist()) == {"a", "b"}
    for key in ("a", "b"):
        assert log.epochs_of(key).equals(everything.epochs_of(key))


def test_left_out_columns_are_null(example_log: ExampleLog) -> None:
    example_log.trial("a")
    whole = read_log(example_log.storage, "example")
    lean = read_log(example_log.storage, "example", leave_out=["losses"])
    assert lean.epochs["losses"].null_count == len(whole.epochs) == 4
    assert lean.epochs.schema.equals(whole.epochs.schema)
    assert lean.epochs.drop_columns(["losses"]).equals(whole.epochs.drop_columns(["losses"]))


def test_study_content_is_of_the_last_run_even_if_it_repeats_an_arm(
    example_log: ExampleLog,
) -> None:
    example_log.trial("a")
    example_log.content["search"]["trials"] = 99
    example_log.trial("b")
    assert read_log(example_log.storage).study_content("example")["search"]["trials"] == 99
    example_log.content["search"]["trials"] = 7
    example_log.trial("a")
    assert read_log(example_log.storage).study_content("example")["search"]["trials"] == 7
    assert read_log(example_log.storage).study_content("unknown") == {}
