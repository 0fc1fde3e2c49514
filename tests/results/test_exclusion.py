"""Excluding a trial's result, and including it again."""

import dataclasses
from datetime import UTC, datetime

import pytest

from kdr.errors import ConfigError
from kdr.report.ranking import best_trial, ranking
from kdr.report.settings_table import settings_table
from kdr.results.exclusion import exclude, include
from kdr.results.reader import TrialState, known_keys, read_log
from kdr.results.sql import query
from tests.conftest import ExampleLog


def state(log: ExampleLog, key: str) -> TrialState:
    return read_log(log.storage).states()[key]


@pytest.fixture
def judged(example_log: ExampleLog) -> ExampleLog:
    """A log of two trials; the better one is excluded."""
    example_log.trial("good", AP=0.5)
    example_log.trial("fair", AP=0.25)
    exclude(example_log.storage, state(example_log, "good"), "a broken disk")
    return example_log


def test_an_excluded_trial_is_in_no_result_and_its_reason_is_kept(judged: ExampleLog) -> None:
    log = read_log(judged.storage)
    assert known_keys(log) == {"fair"}
    assert best_trial(log, "example").key == "fair"
    assert [(trial.key, trial.rank, trial.value) for trial in ranking(log, "example")] == [
        ("fair", 1, 0.25),
        ("good", None, None),
    ]
    table = settings_table(log, "example", ["distill.kdr.weight"])
    assert [row.keys for row in table.rows] == [("fair",)]
    assert any("excluded" in note for note in table.notes)
    rows = query(
        judged.storage, "SELECT key, state, AP, reason FROM trials WHERE key = 'good'"
    ).to_pylist()
    assert rows == [{"key": "good", "state": "excluded", "AP": None, "reason": "a broken disk"}]
    assert query(judged.storage, "SELECT * FROM epochs WHERE key = 'good'").num_rows == 0


def test_an_exclusion_removes_no_row_and_can_be_undone(judged: ExampleLog) -> None:
    include(judged.storage, state(judged, "good"))
    log = read_log(judged.storage)
    assert known_keys(log) == {"good", "fair"}
    assert best_trial(log, "example").value == 0.5
    assert not judged.storage.restart_marker("good").exists()
    events = [row["event"] for row in log.trials.to_pylist() if row["key"] == "good"]
    assert events == ["started", "completed", "excluded", "included"]


def test_excluding_or_including_twice_is_refused(judged: ExampleLog) -> None:
    with pytest.raises(
        ConfigError,
        match="must be a trial that has started and is not excluded, got good, which is excluded",
    ):
        exclude(judged.storage, state(judged, "good"), "again")
    with pytest.raises(
        ConfigError,
        match=(
            "must be an excluded trial that has not been run again, got fair, which is completed"
        ),
    ):
        include(judged.storage, state(judged, "fair"))


def test_exclusions_and_inclusions_hold_after_the_clock_was_set_back(
    judged: ExampleLog,
) -> None:
    """Unlike the fixture's, this log has times later than the clock's."""
    ahead = dataclasses.replace(judged, study="ahead", time=datetime(2200, 1, 1, tzinfo=UTC))
    ahead.trial("future", AP=0.3)
    for _ in range(2):
        exclude(judged.storage, state(judged, "future"), "why")
        assert state(judged, "future").state == "excluded"
        include(judged.storage, state(judged, "future"))
        assert state(judged, "future").state == "completed"
