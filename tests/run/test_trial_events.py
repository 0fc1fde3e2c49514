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
from kdr.run.observer import TrialProgress
from kdr.run.trial_actor import tune_config
from kdr.run.trial_events import TrialEvents
from kdr.run.trial_identity import trial_maker
from kdr.storage import Storage


class Recorder:
    """Keeps what an observer is told."""

    def __init__(self) -> None:
        self.updates: list[TrialProgress] = []

    def phase(self, text: str) -> None:
        """Not told here."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not told here."""

    def update(self, progress: TrialProgress) -> None:
        self.updates.append(progress)


@pytest.fixture
def study() -> Study:
    return study_from({"study": "cut", "trial": {"data": {"dataset": "shapes"}, "training": {"epochs": 4}}}, folder=Path())


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
    return TrialEvents(study, storage, recorder, role="student", metric="AP", names={trial.key: "1"}, max_crashes=2)


def tunes_trial(trial: Trial, result: dict[str, Any] | None = None) -> Any:
    """What of Tune's trial is looked at."""
    return SimpleNamespace(trial_id="tune-1", config=tune_config(trial, parameters={}), last_result=result)


def begun(trial: Trial, storage: Storage, attempt: int) -> None:
    """Leaves what an attempt leaves: the count in the trial's folder, and an event."""
    folder = storage.trial(trial.key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "attempts").write_text(str(attempt))
    write(trial, storage, attempt=attempt, event="resumed" if attempt > 1 else "started")


def write(trial: Trial, storage: Storage, **columns: Any) -> None:
    with LogWriter(storage, "cut") as log:
        log.event(TrialEvent(study="cut", key=trial.key, config=trial.config.model_dump_json(), **columns))


def test_a_trial_that_runs_when_tune_returns_was_interrupted(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    begun(trial, storage, attempt=1)
    tuned = tunes_trial(trial, {"epoch": 2, "AP": 0.25, "attempt": 1, "reached": {"epoch": 2, "AP": 0.25}})
    events.on_trial_start(0, [tuned], tuned)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.attempt, state.epoch, state.metrics["AP"]) == ("interrupted", 1, 2, 0.25)
    assert [(update.state, update.epoch) for update in recorder.updates] == [("running", 2), ("interrupted", 2)]


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
    tuned = tunes_trial(trial, {"epoch": 3, "AP": 0.25, "attempt": 1, "reached": {"epoch": 3, "AP": 0.25}})
    events.on_trial_start(0, [tuned], tuned)
    write(trial, storage, event="completed", epoch=4, AP=0.5)
    events.close()
    state = read_log(storage).states()[trial.key]
    assert (state.state, state.epoch, state.metrics["AP"]) == ("completed", 4, 0.5)


def test_a_trial_whose_process_died_too_often_has_failed(
    events: TrialEvents, trial: Trial, storage: Storage, recorder: Recorder
) -> None:
    begun(trial, storage, attempt=3)
    tuned = tunes_trial(trial)
    tuned.get_error = lambda: "ActorDiedError: worker\nout of memory\n"
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
