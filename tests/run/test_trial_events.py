"""What the driver logs about trials: lost processes, hangs, interruptions, and an aborted study."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.results.reader import read_log
from kdr.results.schema import TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.observer import TrialUpdate
from kdr.run.trial_events import TrialEvents
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from tests.run.tune_stand_ins import FakeStopper, launched, report_of


class Recorder:
    """Records updates."""

    def __init__(self) -> None:
        self.updates: list[TrialUpdate] = []

    def phase(self, text: str) -> None:
        """Not recorded."""

    def finding(self, finding: Any) -> None:
        """Not recorded."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not recorded."""

    def update(self, progress: TrialUpdate) -> None:
        self.updates.append(progress)


@pytest.fixture
def study() -> Study:
    return study_from(
        {"study": "cut", "trial": {"data": {"dataset": "shapes"}, "training": {"epochs": 4}}},
        folder=Path(),
    )


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


@pytest.fixture
def trial(study: Study, storage: Storage) -> Trial:
    return trial_maker(study, storage)(study.base)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def events(study: Study, storage: Storage, recorder: Recorder, trial: Trial) -> TrialEvents:
    return TrialEvents(
        study, storage, recorder, role="student", names={trial.key: "1"}, stopper=FakeStopper()
    )


def written(folder: Path, error: str) -> str:
    """Writes a trial's errors as Tune does; returns the path."""
    path = folder / "error.txt"
    path.write_text(error)
    return str(path)


def start(trial: Trial, storage: Storage, attempt: int, **columns: Any) -> None:
    """Starts an attempt: its count in the trial's folder, and its event."""
    folder = storage.trial(trial.key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attempts").write_bytes(str(attempt).encode())
    write(trial, storage, attempt=attempt, event="resumed" if attempt > 1 else "started", **columns)


def write(trial: Trial, storage: Storage, **columns: Any) -> None:
    with LogWriter(storage, "cut") as log:
        log.event(
            TrialEvent(study="cut", key=trial.key, config=trial.config.model_dump_json(), **columns)
        )


def test_a_trial_that_runs_when_tune_returns_was_interrupted(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    start(trial, storage, attempt=1)
    tuned = launched(trial, report_of(2, 0.25))
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt, state.epoch, state.metrics["AP"]) == (
        "interrupted",
        1,
        2,
        0.25,
    )
    assert [(update.state, update.epoch) for update in recorder.updates] == [
        ("running", 2),
        ("interrupted", 2),
    ]


def test_an_attempt_without_a_report_is_logged_as_interrupted(
    events: TrialEvents, trial: Trial, storage: Storage
) -> None:
    start(trial, storage, attempt=1)
    start(trial, storage, attempt=2)
    tuned = launched(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt) == ("interrupted", 2)


def test_a_trial_that_has_not_restarted_keeps_its_end(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    start(trial, storage, attempt=1)
    write(trial, storage, event="failed", reason="it was unlucky")
    tuned = launched(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    assert read_log(storage).states()[trial.key].state == "failed"
    assert recorder.updates[-1].state == "interrupted"


def test_a_trial_that_ended_after_tune_stopped_listening_stays_completed(
    events: TrialEvents, trial: Trial, storage: Storage
) -> None:
    start(trial, storage, attempt=1)
    tuned = launched(trial, report_of(3, 0.25))
    events.on_trial_start(0, [tuned], tuned)
    write(trial, storage, event="completed", epoch=4, AP=0.5)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.epoch, state.metrics["AP"]) == ("completed", 4, 0.5)


def test_a_trial_that_hung_resumes_and_the_log_has_its_host_and_stacks(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    start(trial, storage, attempt=1, host="a-node")
    storage.hang(trial.key, 1).write_text("Timeout (0:30:00)!\nFile read.py, line 3 in wait")
    tuned = launched(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_recover(0, [tuned], tuned)
    last = read_log(storage).states()[trial.key].last
    assert (last.event, last.failure_kind, last.host) == ("interrupted", "hang", "a-node")
    assert last.reason == "it hung: no batch for 1800 s"
    assert last.traceback == "hang-1:\nTimeout (0:30:00)!\nFile read.py, line 3 in wait"
    assert (
        recorder.updates[-1].reason == "it hung: no batch for 1800 s; resumes from its checkpoint"
    )


@pytest.mark.parametrize(
    ("error", "hangs", "kind"),
    [
        ("ActorDiedError: killed", False, "crash"),
        ("OutOfMemoryError: the node was running low on memory", False, "out_of_memory"),
        ("ActorDiedError: exited", True, "hang"),
    ],
)
def test_a_trial_that_lost_its_process_too_often_fails_by_kind(
    events: TrialEvents,
    trial: Trial,
    storage: Storage,
    error: str,
    hangs: bool,
    kind: str,
    tmp_path: Path,
) -> None:
    start(trial, storage, attempt=3, host="a-node")
    if hangs:
        storage.hang(trial.key, 0).write_text("Timeout (0:30:00)!")
    tuned = launched(trial)
    tuned.error_file = written(tmp_path, error)
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_error(0, [tuned], tuned)
    last = read_log(storage).states()[trial.key].last
    assert (last.event, last.failure_kind, last.host) == ("failed", kind, "a-node")
    assert last.traceback == ("hang-0:\nTimeout (0:30:00)!" if hangs else error)


def failing(
    study: Study, storage: Storage, recorder: Recorder, reasons: list[str]
) -> tuple[TrialEvents, int]:
    """Ends trials one by one, failed for these reasons or, if empty, completed.

    Returns:
        The driver's events, and how often the study was ended.
    """
    stopper = FakeStopper()
    events = TrialEvents(study, storage, recorder, role="student", names={}, stopper=stopper)
    for seed, reason in enumerate(reasons):
        one = trial_maker(study, storage)(study.trial_with({"seed": seed}))
        failure = report_of(0, failed="bad_data", reason=reason)
        tuned = launched(one, failure if reason else report_of(4, 0.5, is_last=True))
        events.on_trial_start(0, [tuned], tuned)
        events.on_trial_complete(0, [tuned], tuned)
    return events, stopper.num_ends


@pytest.mark.parametrize(
    ("reasons", "stops"),
    [
        (
            ["image 12 must be readable", "image 7 must be readable", "image 12 must be readable"],
            True,
        ),
        (["image 12 must be readable"] * 5, True),
        (["image 12 must be readable"] * 2, False),
        (["image 12 must be readable", "the disk is gone", "image 12 must be readable"], False),
        (
            [
                "",
                "image 1 must be readable",
                "image 2 must be readable",
                "image 3 must be readable",
            ],
            False,
        ),
    ],
    ids=["but for numbers", "once", "too few", "different reasons", "one completed"],
)
def test_a_study_whose_first_trials_all_fail_for_the_same_reason_is_aborted_once(
    study: Study, storage: Storage, recorder: Recorder, reasons: list[str], stops: bool
) -> None:
    events, num_ends = failing(study, storage, recorder, reasons)
    assert num_ends == int(stops)
    assert bool(events.abort_reason) == stops
    if stops:
        assert (
            events.abort_reason
            == f"the first 3 trials all failed for the same reason, the last one with: {reasons[2]}"
        )


def test_a_trial_whose_process_died_too_often_fails(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder, tmp_path: Path
) -> None:
    start(trial, storage, attempt=3)
    tuned = launched(trial)
    tuned.error_file = written(tmp_path, "ActorDiedError: worker\nout of memory\n")
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_recover(0, [tuned], tuned)
    events.on_trial_error(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt, state.last.failure_kind) == ("failed", 3, "crash")
    assert state.last.reason == "its process died 3 times, the last time with: out of memory"
    assert [update.reason for update in recorder.updates[1:]] == [
        "its process died; resumes from its checkpoint",
        state.last.reason,
    ]
    assert (events.num_run, events.num_failed) == (1, 1)
