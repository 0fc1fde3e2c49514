"""Studies whose trials are trained by two workers each, on a local Ray: early stops, a killed worker, what is left behind."""

import logging
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from kdr.config.study import study_from
from kdr.results.reader import read_log
from kdr.run.observer import TrialProgress
from kdr.run.ray_session import QUIET
from kdr.run.study_run import run_study
from kdr.storage import Storage

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STUDY: dict[str, Any] = {
    "study": "pairs",
    "trial": {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 72,
            "num_val": 8,
            "search_split": 8,
            "num_classes": 1,
            "object_size": [0.4, 0.9],
        },
        "teacher": {"backbone": "mobilenet_v3_small", "fpn_channels": 32, "training": {"epochs": 1, "batch_size": 8}},
        "student": {"detector": "fcos", "backbone": "mobilenet_v3_small", "fpn_channels": 32, "norm_momentum": 0.1},
        "distill": {"kdr": {}},
        "training": {"epochs": 6, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"},
    },
    "search": {
        "metric": "AP50",
        "stop_early": {"asha": {"grace_epochs": 4, "reduction": 2}},
        "sampler": "grid",
        # the first one learns something, the others nothing
        "parameters": {"training.lr": {"choice": [3e-3, 1e-7, 1e-8, 1e-9]}},
    },
    "resources": {"workers": 2},
}


class Watcher:
    """Kills a worker when the first student has finished its first epoch, if it is to."""

    def __init__(self, *, kill: bool = False) -> None:
        self.kill, self.updates = kill, []  # type: ignore[var-annotated]

    def phase(self, text: str) -> None:
        """Nothing."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Nothing."""

    def update(self, progress: TrialProgress) -> None:
        self.updates.append(progress)
        if self.kill and progress.name == "1" and progress.epoch == 1:
            self.kill = False
            workers()[1].kill()


def workers() -> list[psutil.Process]:
    return processes_of("RayTrainWorker")


def processes_of(*names: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(name in line for name in names):
            found.append(process)
    return found


def what_is_left() -> dict[str, Any]:
    """Groups, processes and CPUs that a study has not given back, ten seconds after its end at the latest."""
    for _ in range(20):
        left = {
            "groups": [group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED"],
            "processes": [
                " ".join(process.cmdline())
                for process in processes_of("RayTrainWorker", "TrialActor", "TrainController", "_Mailboxes")
            ],
            "cpus": ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0),
        }
        if not any(left.values()):
            break
        time.sleep(0.5)
    return left


@pytest.mark.filterwarnings("default")  # the dashboard's own
@pytest.mark.parametrize("dashboard", [False, True])
def test_a_sweep_with_early_stops_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dashboard: bool) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    ray.init(
        address="local",
        include_dashboard=dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": QUIET},
    )
    try:
        study, storage = study_from(STUDY, folder=tmp_path), Storage.at(tmp_path / "runs")
        outcome = run_study(study, storage=storage, observer=Watcher())
        assert what_is_left() == {"groups": [], "processes": [], "cpus": 0}
    finally:
        ray.shutdown()
    states = [state for state in read_log(storage).states_of("pairs").values() if state.role == "student"]
    assert (outcome.num_run, outcome.num_failed) == (4, 0)
    ends = [state.state for state in states]
    assert sorted(set(ends)) == ["completed", "stopped_early"]


def test_a_trial_whose_worker_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    study, storage, watcher = (
        study_from({**STUDY, "search": {**STUDY["search"], "trials": 2, "stop_early": "none"}}, folder=tmp_path),
        Storage.at(tmp_path / "runs"),
        Watcher(kill=True),
    )
    outcome = run_study(study, storage=storage, observer=watcher)
    log = read_log(storage)
    assert (outcome.num_run, outcome.num_failed) == (2, 0)
    assert not watcher.kill
    first = next(state for state in log.states_of("pairs").values() if state.role == "student")
    assert first.state == "completed"
    assert first.last.attempt == 2
    events = [row["event"] for row in log.trials.to_pylist() if row["key"] == first.key]
    assert "resumed" in events
    assert any("goes on from its checkpoint" in update.reason for update in watcher.updates)
