"""Trials that fail, hang or lose their process on a real Ray: logged by kind, with host and
traceback; the study continues."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from kdr.config.study import Study, study_from
from kdr.data.splits import open_splits
from kdr.results.reader import read_log
from kdr.run.cluster.ray_session import ray_session
from kdr.run.observer import TrialUpdate
from kdr.run.study_run import run_study
from kdr.storage.layout import Storage
from tests.faults.invariants import check_log, check_nothing_is_left
from tests.faults.processes import TRIAL_TITLES

pytestmark = [pytest.mark.faults, pytest.mark.ray]

EPOCHS = 3
CONTENT: dict[str, Any] = {
    "study": "failing",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 24, "num_val": 8},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "training": {
            "epochs": EPOCHS,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "resources": {"max_concurrent": 1},
}


@pytest.fixture(scope="module", autouse=True)
def _ray_here() -> Iterator[None]:
    with ray_session(None):
        yield


class Saboteur:
    """Acts on the process of the study's first trial each time it has finished another epoch.

    Args:
        act: called with the process.
        times: how often.
    """

    def __init__(self, act: Callable[[psutil.Process], None], times: int) -> None:
        self.act, self.times = act, times
        self.updates: list[TrialUpdate] = []
        self.first: str | None = None
        self.epoch = 0

    def phase(self, text: str) -> None: ...
    def finding(self, finding: Any) -> None: ...
    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None: ...

    def update(self, progress: TrialUpdate) -> None:
        self.updates.append(progress)
        self.first = self.first or progress.key
        if (
            progress.state == "running"
            and progress.key == self.first
            and progress.epoch > self.epoch
            and self.times
        ):
            self.epoch, self.times = progress.epoch, self.times - 1
            self.act(trial_process())


def trial_process() -> psutil.Process:
    """The process that trains: the newest one, excluding its own forks."""
    end = time.monotonic() + 10
    while not (
        found := [
            one
            for one in psutil.Process().children(recursive=True)
            if trains(one) and not trains(one.parent())
        ]
    ):
        assert time.monotonic() < end, "no process is training"
        time.sleep(0.05)
    return max(found, key=lambda process: process.create_time())


def trains(process: psutil.Process | None) -> bool:
    try:
        return process is not None and " ".join(process.cmdline()).startswith(TRIAL_TITLES)
    except psutil.Error:
        return False


def study_with(seeds: tuple[int, ...] = (0,), **changes: Any) -> Study:
    ablation = {"design": "arms", "arms": {"slow": {"training.lr": 1e-4}}, "seeds": list(seeds)}
    return study_from(
        {**json.loads(json.dumps(CONTENT)), "ablation": ablation, **changes}, folder=Path()
    )


def events(storage: Storage, key: str) -> list[tuple[str, str | None]]:
    rows = sorted(read_log(storage).trials.to_pylist(), key=lambda row: row["time"])
    return [(row["event"], row["failure_kind"]) for row in rows if row["key"] == key]


def test_a_trial_whose_process_is_killed_too_often_fails_and_the_study_continues(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9 of a trial's process, more often than it is retried")
    storage, saboteur = Storage.at(tmp_path), Saboteur(lambda process: process.kill(), times=2)
    outcome = run_study(study_with(faults={"retries": 1}), storage=storage, observer=saboteur)
    assert (outcome.num_run, outcome.num_failed, outcome.abort_reason) == (2, 1, "")
    log = check_log(storage, "failing")
    first, second = log.states_of("failing").values()
    assert events(storage, first.key) == [
        ("started", None),
        ("resumed", None),
        ("failed", "crash"),
    ]
    assert (first.last.host, second.state) == (second.last.host, "completed")
    assert (first.last.reason or "").startswith("its process died 2 times, the last time with: ")
    assert "died" in (first.last.traceback or "")


def test_a_hung_trial_is_ended_with_its_stack_in_the_log_and_resumes(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a trial that hangs: its loader is stopped (SIGSTOP)")

    stopped: list[psutil.Process] = []

    def stop_the_loaders(process: psutil.Process) -> None:
        for loader in process.children():
            loader.suspend()
            stopped.append(loader)

    storage, saboteur = Storage.at(tmp_path), Saboteur(stop_the_loaders, times=1)
    study = study_with(
        faults={"silence_s": 15}, resources={"max_concurrent": 1, "loader_workers": 1}
    )
    try:
        outcome = run_study(study, storage=storage, observer=saboteur)
    finally:
        for loader in stopped:
            with contextlib.suppress(psutil.Error):
                loader.kill()
    assert stopped
    assert (outcome.num_run, outcome.num_failed) == (2, 0)
    assert saboteur.first is not None
    assert events(storage, saboteur.first) == [
        ("started", None),
        ("interrupted", "hang"),
        ("resumed", None),
        ("completed", None),
    ]
    log = check_log(storage, "failing")
    hung = next(row for row in log.trials.to_pylist() if row["failure_kind"] == "hang")
    assert hung["reason"] == "it hung: no batch for 15 s"
    assert "torch/utils/data/dataloader.py" in hung["traceback"]
    assert hung["host"]
    check_nothing_is_left(storage, log)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_non_finite_loss_fails_its_trial_and_the_study_continues(
    optimizer: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", f"a loss that is NaN or infinite ({optimizer})")
    wild = {
        "design": "arms",
        "arms": {"wild": {"training.lr": 1e30, "training.optimizer": optimizer}},
        "seeds": [0],
    }
    outcome = run_study(
        study_with(ablation=wild),
        storage=Storage.at(tmp_path),
        observer=Saboteur(lambda _: None, times=0),
    )
    assert (outcome.num_run, outcome.num_failed, outcome.abort_reason) == (2, 1, "")
    log = check_log(Storage.at(tmp_path), "failing")
    [failed] = [state for state in log.states_of("failing").values() if state.state == "failed"]
    assert events(Storage.at(tmp_path), failed.key) == [
        ("started", None),
        ("failed", "non_finite_loss"),
    ]
    assert "NaN or infinite in epoch" in (failed.last.reason or "")
    assert failed.last.host
    assert "TrialFailure" in (failed.last.traceback or "")


def test_a_corrupt_image_fails_every_trial_and_the_study_aborts_with_one_report(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a corrupt image: all trials fail with the same error")
    study, storage = study_with(seeds=(0, 1, 2)), Storage.at(tmp_path)
    path = Path(open_splits(study.base.data, storage).train.paths[7])
    # the check before the start reads only its header
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome = run_study(study, storage=storage, observer=Saboteur(lambda _: None, times=0))
    assert (outcome.num_run, outcome.num_failed, outcome.interrupted) == (3, 3, False)
    reason = rf"the first 3 trials all failed .*bad_data: {re.escape(str(path))}: image "
    assert re.match(reason, outcome.abort_reason)
    states = read_log(storage).states_of("failing").values()
    assert {(state.state, state.last.failure_kind, state.epoch) for state in states} == {
        ("failed", "bad_data", 0)
    }
    assert all(
        "TrialFailure" in (state.last.traceback or "") and state.last.host for state in states
    )
    check_log(storage, "failing")
