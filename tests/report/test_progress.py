from datetime import timedelta

import pytest

from kdr.report.progress import StudyProgress, study_progress
from kdr.results.reader import read_log
from tests.conftest import ExampleLog


def progress(example_log: ExampleLog, after_s: float = 0.0) -> StudyProgress:
    now = example_log.time + timedelta(seconds=after_s)
    return study_progress(read_log(example_log.storage), "example", now=now)


def test_a_running_trial_shows_its_epochs_and_the_age_of_its_last_row(
    example_log: ExampleLog,
) -> None:
    example_log.trial("a", AP=0.4, event="started", epoch=2)
    [trial] = progress(example_log, after_s=7.5).trials
    assert (trial.state, trial.epoch, trial.epochs, trial.value, trial.age_s) == (
        "running",
        2,
        4,
        0.4,
        7.5,
    )


def test_the_eta_follows_from_the_remaining_epochs(example_log: ExampleLog) -> None:
    example_log.trial("a")
    example_log.trial("b", event="started", epoch=1)
    # 8 trials of 4 epochs: 6 not started and 3 epochs of b, 11 s each, one at a time
    assert progress(example_log).seconds_left == pytest.approx((6 * 4 + 3) * 11)
    example_log.trial("c", event="started", epoch=1)
    assert progress(example_log).seconds_left == pytest.approx((5 * 4 + 3 + 3) * 11 / 2)


def test_the_eta_assumes_that_later_trials_stop_early_as_often(example_log: ExampleLog) -> None:
    example_log.trial("a")
    example_log.trial("b", event="stopped_early", epoch=2)
    assert progress(example_log).seconds_left == pytest.approx(6 * 3 * 11)


def test_a_trial_whose_process_died_does_not_count_as_active(example_log: ExampleLog) -> None:
    example_log.trial("a", event="started", epoch=1)
    example_log.trial("b", event="started", epoch=1)
    fresh, stale = progress(example_log), progress(example_log, after_s=3600)
    assert fresh.seconds_left is not None
    assert stale.seconds_left == pytest.approx(2 * fresh.seconds_left)


def test_a_study_is_over_when_its_budget_is_spent(example_log: ExampleLog) -> None:
    for number in range(7):
        example_log.trial(f"k{number}", event="failed" if number else "completed")
    example_log.trial("teacher", role="teacher")
    assert not progress(example_log).is_over
    example_log.trial("k7", event="stopped_early")
    found = progress(example_log)
    assert found.is_over
    assert (found.total, found.counts, found.seconds_left) == (
        8,
        {"completed": 1, "failed": 6, "stopped_early": 1},
        0,
    )


def test_a_study_without_search_has_as_many_trials_as_arms(example_log: ExampleLog) -> None:
    del example_log.content["search"]
    example_log.trial("a")
    example_log.trial("b", event="started", epoch=1)
    found = progress(example_log)
    assert (found.total, found.is_over) == (2, False)


def test_a_budget_in_hours_has_no_total_and_no_eta(example_log: ExampleLog) -> None:
    del example_log.content["search"]["trials"]
    example_log.content["search"]["hours"] = 1
    example_log.trial("a")
    found = progress(example_log)
    assert (found.total, found.seconds_left, found.is_over) == (None, None, False)


def test_a_study_that_has_not_started_has_no_trials(example_log: ExampleLog) -> None:
    found = progress(example_log)
    assert (found.trials, found.total, found.seconds_left, found.is_over) == (
        (),
        None,
        None,
        False,
    )
