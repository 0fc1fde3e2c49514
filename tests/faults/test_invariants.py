"""The invariants that all fault tests rely on: each violation is found and counted."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdr.results.schema import EpochRow
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
from tests.conftest import ExampleLog
from tests.faults.invariants import check_log, check_nothing_is_left, results_of, toll


def two_trials(log: ExampleLog) -> None:
    log.trial("a")
    log.trial("b")


def one_trial(log: ExampleLog) -> None:
    log.trial("a")


def three_trials(log: ExampleLog) -> None:
    two_trials(log)
    log.trial("c")


def one_attempt_started_twice(log: ExampleLog) -> None:
    two_trials(log)
    log.trial("a", event="started", epoch=0)


def one_completed_twice(log: ExampleLog) -> None:
    two_trials(log)
    log.trial("a", attempt=2)


def one_without_an_epoch(log: ExampleLog) -> None:
    log.trial("a")
    log.trial("b", epoch=2, event="started")
    with LogWriter(log.storage, log.study) as writer:
        writer.epoch(
            EpochRow(study=log.study, key="b", attempt=1, epoch=4, step=40, time=log.tick())
        )


def a_checkpoint(log: ExampleLog) -> None:
    two_trials(log)
    folder = log.storage.trial("a")
    folder.mkdir(parents=True)
    (folder / "checkpoint.pt").touch()


def a_temporary_file(log: ExampleLog) -> None:
    two_trials(log)
    (log.storage.root / "log.tmp").touch()


@pytest.mark.parametrize(
    ("happens", "kind"),
    [
        (one_trial, "lost"),
        (one_without_an_epoch, "lost"),
        (three_trials, "doubled"),
        (one_attempt_started_twice, "doubled"),
        (one_completed_twice, "doubled"),
        (a_checkpoint, "left behind"),
        (a_temporary_file, "left behind"),
    ],
)
def test_each_violation_is_found_and_counted(
    happens: Callable[[ExampleLog], None], kind: str, example_log: ExampleLog, tmp_path: Path
) -> None:
    undisturbed = ExampleLog(Storage.at(tmp_path / "undisturbed"))
    two_trials(undisturbed)
    happens(example_log)
    with pytest.raises(AssertionError, match=f"^{kind}: "):
        check_log(example_log.storage, "example", results_of(undisturbed.storage, "example"))
    assert +toll == {"checks": 1, kind: 1}


def test_nothing_is_counted_for_a_study_that_equals_the_undisturbed_one(
    example_log: ExampleLog, tmp_path: Path
) -> None:
    undisturbed = ExampleLog(Storage.at(tmp_path / "undisturbed"))
    for log in (undisturbed, example_log):
        two_trials(log)
    expected = results_of(undisturbed.storage, "example")
    check_nothing_is_left(example_log.storage, check_log(example_log.storage, "example", expected))
    assert +toll == {"checks": 1}
