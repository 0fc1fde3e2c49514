"""Studies whose trials have two workers each, on a local Ray: early stops, a killed worker, a
cancelled trial, and that nothing is left behind."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray.util.placement_group import placement_group_table

from kdr.config.study import study_from
from kdr.results.reader import Log, TrialState
from kdr.run.attempt.cancellation import request_cancel
from kdr.run.cluster.ray_session import QUIET
from kdr.run.observer import TrialUpdate
from kdr.run.study_run import Outcome, run_study
from kdr.storage.layout import Storage
from tests.faults.invariants import check_log, check_nothing_is_left, none, results_of

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
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8},
        },
        "student": {
            "detector": "fcos",
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "norm_momentum": 0.1,
        },
        "distill": {"kdr": {}},
        "training": {
            "epochs": 6,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "search": {
        "metric": "AP50",
        "stop_early": {"asha": {"grace_epochs": 4, "reduction": 2}},
        "sampler": "grid",
        # the first one learns something, the others nothing
        "parameters": {"training.lr": {"choice": [3e-3, 1e-7, 1e-9]}},
    },
    "resources": {"workers": 2},
}

PLAIN = {**STUDY["trial"], "distill": {}}
"""The same trial without a teacher, whose training would start another gang."""


class Watcher:
    """Records which processes train each trial.

    Args:
        cancel_in: storage of the study; if given, a worker of the first student is killed after the
            first epoch, and the second student is cancelled after its own.
    """

    def __init__(self, cancel_in: Storage | None = None) -> None:
        self._cancel_in, self._done = cancel_in, set[str]()
        self.updates: list[TrialUpdate] = []
        self.workers: dict[str, set[int]] = {}
        """Name of a trial -> ids of the processes that trained its last epochs."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def finding(self, finding: Any) -> None:
        """Nothing."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Nothing."""

    def update(self, progress: TrialUpdate) -> None:
        self.updates.append(progress)
        if progress.state != "running" or progress.epoch == 0 or progress.reason:
            return
        self.workers[progress.name] = {process.pid for process in workers()}
        if (
            self._cancel_in is not None
            and progress.name in ("1", "2")
            and progress.name not in self._done
        ):
            self._done.add(progress.name)
            if progress.name == "1":
                workers()[1].kill()
            else:
                request_cancel(self._cancel_in, progress.key, "it is slow")


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


def free_cpus_missing() -> float:
    total = ray.cluster_resources()["CPU"]  # type: ignore[no-untyped-call]
    free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
    return float(total - free)


def check_nothing_is_held() -> None:
    """Asserts that within ten seconds of its end a study holds no groups, processes or CPUs."""
    for _ in range(20):
        left = {
            "groups": [
                group["state"]
                for group in placement_group_table().values()
                if group["state"] != "REMOVED"
            ],
            "processes": [
                " ".join(process.cmdline())
                for process in processes_of(
                    "RayTrainWorker", "TrialActor", "TrainController", "_Mailboxes"
                )
            ],
            "cpus": free_cpus_missing(),
        }
        if not any(left.values()):
            break
        time.sleep(0.5)
    none("left behind", [what for what in left.items() if what[1]])


@pytest.fixture
def ray_with_dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray with a dashboard, which removes the groups of ended jobs, as on a cluster."""
    ray.shutdown()  # shared with the other tests
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    ray.init(
        address="local",
        include_dashboard=True,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": QUIET},
    )
    yield
    ray.shutdown()


def check_early_stops_leave_nothing_behind(folder: Path, content: dict[str, Any]) -> None:
    study, storage = study_from(content, folder=folder), Storage.at(folder / "runs")
    outcome = run_study(study, storage=storage, observer=Watcher())
    check_nothing_is_held()
    states = [
        state
        for state in check_log(storage, "pairs").states_of("pairs").values()
        if state.role == "student"
    ]
    assert (outcome.num_run, outcome.num_failed) == (3, 0)
    assert sorted({state.state for state in states}) == ["completed", "stopped_early"]


def test_a_sweep_with_early_stops_leaves_nothing_behind(ray_here: None, tmp_path: Path) -> None:
    check_early_stops_leave_nothing_behind(tmp_path, STUDY)


@dataclass(frozen=True)
class Disturbed:
    """A study of four trials: the first one's worker was killed, the second one was cancelled."""

    outcome: Outcome
    watcher: Watcher
    log: Log
    storage: Storage

    @property
    def students(self) -> list[TrialState]:
        return [state for state in self.log.states_of("pairs").values() if state.role == "student"]

    def events(self, trial: TrialState) -> list[str]:
        return [row["event"] for row in self.log.trials.to_pylist() if row["key"] == trial.key]


@pytest.fixture(scope="module")
def disturbed(ray_here: None, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    folder = tmp_path_factory.mktemp("disturbed")
    storage = Storage.at(folder / "runs")
    search = {
        "sampler": "grid",
        "parameters": {"training.lr": {"choice": [1e-3, 1e-4, 1e-5, 1e-6]}},
    }
    resources = {"workers": 2, "max_trials_per_start": 3}
    study = study_from(
        {**STUDY, "trial": PLAIN, "search": search, "resources": resources}, folder=folder
    )
    watcher = Watcher(cancel_in=storage)
    outcome = run_study(study, storage=storage, observer=watcher)
    return Disturbed(outcome, watcher, check_log(storage, "pairs"), storage)


def test_a_trial_whose_worker_is_killed_resumes_from_its_checkpoint(disturbed: Disturbed) -> None:
    assert (disturbed.outcome.num_run, disturbed.outcome.num_failed) == (4, 0)
    first = disturbed.students[0]
    assert (first.state, first.last.attempt) == ("completed", 2)
    assert disturbed.events(first) == ["started", "resumed", "completed"]
    assert any(
        "resumes from its checkpoint" in update.reason for update in disturbed.watcher.updates
    )


@pytest.mark.faults
def test_a_trial_whose_worker_was_killed_has_the_numbers_of_an_undisturbed_one(
    disturbed: Disturbed, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9 of a worker of a gang of two")
    first, quiet = disturbed.students[0].key, Storage.at(tmp_path / "runs")
    search = {"sampler": "grid", "parameters": {"training.lr": {"choice": [1e-3]}}}
    study = study_from({**STUDY, "trial": PLAIN, "search": search}, folder=tmp_path)
    run_study(study, storage=quiet, observer=Watcher())
    check_nothing_is_left(disturbed.storage, check_log(disturbed.storage, "pairs"))
    assert numbers_of(results_of(disturbed.storage, "pairs")[first]) == numbers_of(
        results_of(quiet, "pairs")[first]
    )


def numbers_of(result: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a result without the trial's rank in its study."""
    state, epoch, _, *numbers = result
    return state, epoch, *numbers


def test_a_cancelled_trial_ends_alone_and_its_workers_take_the_next(disturbed: Disturbed) -> None:
    cancelled = disturbed.students[1]
    assert (cancelled.state, cancelled.last.reason) == ("cancelled", "it is slow")
    assert 1 <= cancelled.epoch < 6
    assert disturbed.events(cancelled) == ["started", "cancelled"]
    assert [state.state for state in disturbed.students] == [
        "completed",
        "cancelled",
        "completed",
        "completed",
    ]
    trained_by = disturbed.watcher.workers
    assert len(trained_by["1"]) == 2
    assert trained_by["1"] == trained_by["2"] == trained_by["3"]


def test_the_workers_are_restarted_after_max_trials_per_start(disturbed: Disturbed) -> None:
    trained_by = disturbed.watcher.workers
    assert len(trained_by["4"]) == 2
    assert not trained_by["4"] & trained_by["3"]


@pytest.mark.faults
@pytest.mark.filterwarnings("default")  # the dashboard's own
def test_a_sweep_with_early_stops_leaves_nothing_behind_where_ray_has_a_dashboard(
    ray_with_dashboard: None, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "early stops by ASHA, gangs of two, a Ray with its dashboard")
    check_early_stops_leave_nothing_behind(tmp_path, {**STUDY, "trial": PLAIN})
