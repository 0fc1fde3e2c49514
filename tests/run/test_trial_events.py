"""What the driver writes of trials when Tune returns before they have ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.results.reader import read_log
from kdr.results.schema import TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.attempt.trial_actor import tune_config
from kdr.run.observer import TrialUpdate
from kdr.run.trial_events import TrialEvents
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage


class Recorder:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.updates: list[TrialUpdate] = []

    def phase(self, text: str) -> None:
        """Not told here."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not told here."""

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
        study,
        storage,
        recorder,
        role="student",
        metric="AP",
        names={trial.key: "1"},
        faults=study.faults,
    )


def tunes_trial(trial: Trial, result: dict[str, Any] | None = None) -> Any:
    """What of Tune's trial is looked at."""
    return SimpleNamespace(
        trial_id="tune-1", config=tune_config(trial, parameters={}), last_result=result
    )


def written(folder: Path, error: str) -> str:
    """What Tune leaves of a trial's errors."""
    path = folder / "error.txt"
    path.write_text(error)
    return str(path)


def begun(trial: Trial, storage: Storage, attempt: int, **columns: Any) -> None:
    """Leaves what an attempt leaves: the count in the trial's folder, and an event."""
    folder = storage.trial(trial.key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attempts").write_text(str(attempt))
    write(trial, storage, attempt=attempt, event="resumed" if attempt > 1 else "started", **columns)


def write(trial: Trial, storage: Storage, **columns: Any) -> None:
    with LogWriter(storage, "cut") as log:
        log.event(
            TrialEvent(study="cut", key=trial.key, config=trial.config.model_dump_json(), **columns)
        )


def test_a_trial_that_runs_when_tune_returns_was_interrupted(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    begun(trial, storage, attempt=1)
    tuned = tunes_trial(
        trial, {"epoch": 2, "AP": 0.25, "attempt": 1, "reached": {"epoch": 2, "AP": 0.25}}
    )
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


def test_an_attempt_that_has_told_nothing_yet_is_the_one_that_was_interrupted(
    events: TrialEvents, trial: Trial, storage: Storage
) -> None:
    begun(trial, storage, attempt=1)
    begun(trial, storage, attempt=2)
    tuned = tunes_trial(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt) == ("interrupted", 2)


def test_a_trial_that_has_not_begun_again_keeps_the_end_that_it_had(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    begun(trial, storage, attempt=1)
    write(trial, storage, event="failed", reason="it was unlucky")
    tuned = tunes_trial(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    assert read_log(storage).states()[trial.key].state == "failed"
    assert recorder.updates[-1].state == "interrupted"


def test_a_trial_that_ended_after_tune_stopped_listening_stays_completed(
    events: TrialEvents, trial: Trial, storage: Storage
) -> None:
    begun(trial, storage, attempt=1)
    tuned = tunes_trial(
        trial, {"epoch": 3, "AP": 0.25, "attempt": 1, "reached": {"epoch": 3, "AP": 0.25}}
    )
    events.on_trial_start(0, [tuned], tuned)
    write(trial, storage, event="completed", epoch=4, AP=0.5)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.epoch, state.metrics["AP"]) == ("completed", 4, 0.5)


def test_a_trial_that_hung_goes_on_and_the_log_says_where_and_what_it_was_doing(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    begun(trial, storage, attempt=1, host="a-node")
    storage.hang(trial.key, 1).write_text("Timeout (0:30:00)!\nFile read.py, line 3 in wait")
    tuned = tunes_trial(trial)
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_recover(0, [tuned], tuned)
    last = read_log(storage).states()[trial.key].last
    assert (last.event, last.failure_kind, last.host) == ("interrupted", "hang", "a-node")
    assert last.reason == "it hung: no batch for 1800 s"
    assert last.traceback == "hang-1:\nTimeout (0:30:00)!\nFile read.py, line 3 in wait"
    assert (
        recorder.updates[-1].reason
        == "it hung: no batch for 1800 s; it goes on from its checkpoint"
    )


@pytest.mark.parametrize(
    ("error", "hangs", "kind"),
    [
        ("ActorDiedError: killed", False, "crash"),
        ("OutOfMemoryError: the node was running low on memory", False, "out_of_memory"),
        ("ActorDiedError: exited", True, "hang"),
    ],
)
def test_a_trial_that_lost_its_process_once_too_often_fails_by_class(
    events: TrialEvents,
    trial: Trial,
    storage: Storage,
    error: str,
    hangs: bool,
    kind: str,
    tmp_path: Path,
) -> None:
    begun(trial, storage, attempt=3, host="a-node")
    if hangs:
        storage.hang(trial.key, 0).write_text("Timeout (0:30:00)!")
    tuned = tunes_trial(trial)
    tuned.error_file = written(tmp_path, error)
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_error(0, [tuned], tuned)
    last = read_log(storage).states()[trial.key].last
    assert (last.event, last.failure_kind, last.host) == ("failed", kind, "a-node")
    assert last.traceback == ("hang-0:\nTimeout (0:30:00)!" if hangs else error)


def failing(
    study: Study, storage: Storage, recorder: Recorder, reasons: list[str]
) -> tuple[TrialEvents, int]:
    """The driver after trials have ended one by one, with these reasons or completed; and how often
    it was told to stop."""
    told: list[int] = []
    events = TrialEvents(
        study,
        storage,
        recorder,
        role="student",
        metric="AP",
        names={},
        faults=study.faults,
        on_abort=lambda: told.append(1),
    )
    for seed, reason in enumerate(reasons):
        one = trial_maker(study, storage)(study.trial_with({"seed": seed}))
        failed = (
            {"failed": "bad_data", "reason": reason, "AP": float("nan")} if reason else {"AP": 0.5}
        )
        tuned = tunes_trial(
            one, {"epoch": 0 if reason else 4, "attempt": 1, "reached": {}, **failed}
        )
        events.on_trial_start(0, [tuned], tuned)
        events.on_trial_complete(0, [tuned], tuned)
    return events, len(told)


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
    ids=["but for numbers", "told once", "too few to say", "not alike", "one is completed"],
)
def test_a_study_whose_first_trials_all_fail_alike_is_given_up_once(
    study: Study, storage: Storage, recorder: Recorder, reasons: list[str], stops: bool
) -> None:
    events, told = failing(study, storage, recorder, reasons)
    assert told == int(stops)
    assert bool(events.abort_reason) == stops
    if stops:
        assert (
            events.abort_reason
            == f"the first 3 trials all failed alike, the last one by {reasons[2]}"
        )


def test_a_trial_whose_process_died_too_often_has_failed(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder, tmp_path: Path
) -> None:
    begun(trial, storage, attempt=3)
    tuned = tunes_trial(trial)
    tuned.error_file = written(tmp_path, "ActorDiedError: worker\nout of memory\n")
    events.on_trial_start(0, [tuned], tuned)
    events.on_trial_recover(0, [tuned], tuned)
    events.on_trial_error(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt, state.last.failure_kind) == ("failed", 3, "crash")
    assert state.last.reason == "its process died 3 times, the last time with: out of memory"
    assert [update.reason for update in recorder.updates[1:]] == [
        "its process died; it goes on from its checkpoint",
        state.last.reason,
    ]
    assert (events.num_run, events.num_failed) == (1, 1)
