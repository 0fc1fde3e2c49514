"""Trials that another running study trains: they are waited for, and then run if still missing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdr.config.study import study_from
from kdr.results.reader import Log
from kdr.run.driver.sole_driver import Claims
from kdr.run.driver.trial_claims import TrialClaims
from kdr.run.observer import TrialUpdate
from kdr.run.shared_trials import run_claimed_first, wait_for_others
from kdr.run.study_driver import RunEnd, StudyDriver
from kdr.storage.layout import Storage
from kdr.training.findings import Finding


class Recorder:
    """Records phases."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def finding(self, finding: Finding) -> None:
        """Not recorded."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not recorded."""

    def update(self, progress: TrialUpdate) -> None:
        """Not recorded."""


def claims_of(storage: Storage, study: str) -> TrialClaims:
    """Claims a study as its driver does; returns that driver's claims on trials."""
    claims = Claims(storage.drivers(study), study)
    claims.take(pytest.fail)
    return TrialClaims(storage, study, claims.own.name)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def driver(storage: Storage, recorder: Recorder) -> StudyDriver:
    content = {"study": "mine", "trial": {"data": {"dataset": "shapes"}}}
    study = study_from(content, folder=Path("/"))
    return StudyDriver(study, storage, recorder, claims_of(storage, "mine"))


@pytest.fixture
def theirs(storage: Storage) -> TrialClaims:
    return claims_of(storage, "theirs")


def on_wait(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Does something in place of each pause between two checks of the other drivers."""
    monkeypatch.setattr("kdr.run.shared_trials.time.sleep", lambda _seconds: action())


@pytest.mark.parametrize("completed", [False, True])
def test_trials_of_other_drivers_come_last_and_only_if_they_are_still_missing(
    driver: StudyDriver,
    theirs: TrialClaims,
    recorder: Recorder,
    monkeypatch: pytest.MonkeyPatch,
    completed: bool,
) -> None:
    theirs.take(["a"])
    missing, runs = {"a", "b", "c"}, list[list[str]]()

    def release() -> None:
        theirs.release("a")
        if completed:
            missing.discard("a")

    def run(_log: Log, keys: list[str]) -> RunEnd:
        runs.append(keys)
        missing.difference_update(keys)
        return RunEnd(num_run=len(keys))

    on_wait(monkeypatch, release)
    end, ended_by_others = run_claimed_first(
        driver, ["a", "b", "c"], run=run, missing=lambda _log: missing
    )
    assert runs == ([["b", "c"]] if completed else [["b", "c"], ["a"]])
    assert end == RunEnd(num_run=2 if completed else 3)
    assert ended_by_others == ({"a"} if completed else set())
    assert recorder.phases[0].startswith("Waiting for a trial trained by study theirs (process ")
    assert recorder.phases[1:] == ["Continuing"]


def test_ctrl_c_while_waiting_ends_the_run(
    driver: StudyDriver, theirs: TrialClaims, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs.take(["a"])

    def interrupt() -> None:
        raise KeyboardInterrupt

    on_wait(monkeypatch, interrupt)
    end = wait_for_others(driver, ["a"])
    assert (end.interrupted, end.terminated, end.is_final) == (True, False, True)
    end, _ = run_claimed_first(
        driver, ["a"], run=lambda *_: pytest.fail("it runs"), missing=lambda _log: {"a"}
    )
    assert end == RunEnd(interrupted=True)


def test_nothing_is_waited_for_if_no_driver_trains_it(
    driver: StudyDriver, recorder: Recorder
) -> None:
    assert wait_for_others(driver, ["a"]) == RunEnd()
    assert recorder.phases == []


def test_ends_add_up() -> None:
    first = RunEnd(num_run=2, num_failed=1)
    aborted = RunEnd(num_run=1, num_failed=1, abort_reason="always the same")
    assert first.then(aborted) == RunEnd(3, 2, abort_reason="always the same")
    assert not first.is_final
    assert first.then(aborted).is_final
    assert first.then(RunEnd(interrupted=True, terminated=True)).terminated
