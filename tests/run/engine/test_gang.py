"""Two gloo workers of Ray Train that stay warm between trials."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.util.placement_group import placement_group_table

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.data.splits import open_splits
from kdr.errors import TrialFailure
from kdr.results.reader import read_log
from kdr.results.writer import LogWriter
from kdr.run.attempt.logged_fit import LoggedTrial, teacher_of
from kdr.run.engine import gang as gang_module
from kdr.run.engine.engine import Epochs, InlineEngine, ProcessLostError
from kdr.run.engine.gang import Gang, GangSettings
from kdr.run.engine.worker import serve
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics
from kdr.training.training_state import Pass, TrainingState

pytestmark = [pytest.mark.ray, pytest.mark.slow]

CONTENT: dict[str, Any] = {
    "study": "together",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "one_cycle",
        },
    },
    "resources": {"workers": 2},
}
Make = Callable[[dict[str, Any]], Trial]
SIZE = GangSettings(
    num_workers=2,
    cpus_per_worker=1,
    gpus_per_worker=0,
    loader_workers=0,
    max_trials=100,
    silence_s=1800.0,
)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage.at(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def study() -> Study:
    return study_from(CONTENT, folder=Path("/"))


@pytest.fixture(scope="module")
def make(study: Study, storage: Storage) -> Make:
    open_splits(study.base.data, storage)
    maker = trial_maker(study, storage)
    return lambda changes: maker(study.trial_with(changes))


class Owner:
    """Owns a gang in an actor of its own, as a Tune trial does."""

    def __init__(self, size: GangSettings, storage: Storage) -> None:
        self._gang = Gang(size, storage, "together")
        self._epochs: Epochs | None = None

    def begin(self, trial: Trial) -> EpochMetrics:
        self._epochs = self._gang.fit(trial)
        return self.another()

    def another(self) -> EpochMetrics:
        assert self._epochs is not None
        return next(self._epochs)

    def rest(self) -> list[EpochMetrics]:
        return list(self._epochs or ())

    def stop(self) -> None:
        assert self._epochs is not None
        self._epochs.close()

    def starve(self) -> None:
        """Starves its workers from now on."""
        gang_module.serve = starving  # type: ignore[attr-defined]
        self._gang.close()

    def logged(self, trial: Trial, storage: Storage) -> list[EpochMetrics]:
        with LogWriter(storage, "together") as log:
            return list(LoggedTrial(trial, log, storage).epochs(self._gang))

    def where(self) -> dict[str, Any]:
        return dict(self._gang.where)

    def close(self) -> None:
        self._gang.close()


def starving(given: dict[str, Any]) -> None:
    """Runs a worker whose rank 1 runs out of memory in its fourth step, if it has many images at a
    time."""
    losses = TrainingState.losses

    def starved(self: TrainingState, one: Pass, step: int, **more: Any) -> Any:
        if self.ranks.rank == 1 and step == 3 and len(one.batch) > 2:
            torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error
        return losses(self, one, step, **more)

    TrainingState.losses = starved  # type: ignore[method-assign]
    serve(given)


class OwnedGang:
    """A gang whose owner is another process."""

    def __init__(self, storage: Storage, **changes: int) -> None:
        self._owner = ray.remote(num_cpus=0)(Owner).remote(
            GangSettings(**{**vars(SIZE), **changes}), storage
        )

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given: ray.get(getattr(self._owner, name).remote(*given))

    def fit(self, trial: Trial) -> list[EpochMetrics]:
        return [self.begin(trial), *self.rest()]


@pytest.fixture(scope="module")
def gang(ray_here: None, storage: Storage, make: Make) -> Iterator[OwnedGang]:
    """Starts a gang, and trains the teacher of its trials."""
    gang = OwnedGang(storage)
    teacher = teacher_of(make({}))
    assert teacher is not None
    gang.fit(teacher)
    yield gang
    gang.close()


def held_groups() -> list[dict[str, Any]]:
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if any("RayTrainWorker" in part for part in process.cmdline())
    ]


def forget(storage: Storage, trial: Trial) -> None:
    for name in ("checkpoint.pt", "student.pt", "student.json"):
        (storage.trial(trial.key) / name).unlink(missing_ok=True)


def test_a_trial_has_the_same_bits_as_first_and_as_fifth_of_a_gang(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    trials = [make({"distill.kdr.weight": weight}) for weight in (1.0, 5.0, 0.5, 2.0)]
    first = gang.fit(trials[0])
    for other in trials[1:]:
        gang.fit(other)
    forget(storage, trials[0])
    fifth = gang.fit(trials[0])
    assert [epoch.weighted_losses for epoch in first] == [epoch.weighted_losses for epoch in fifth]
    assert [epoch.evaluation for epoch in first] == [epoch.evaluation for epoch in fifth]
    assert len(first) == 2
    assert gang.where()["host"]


def test_a_trial_that_is_stopped_leaves_the_gang_ready_for_the_next(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    stopped = make({"training.epochs": 5})
    assert gang.begin(stopped).epoch == 1
    gang.stop()
    before = workers()
    assert [epoch.epoch for epoch in gang.fit(make({"seed": 3}))] == [1, 2]
    assert workers() == before
    assert [epoch.epoch for epoch in gang.fit(stopped)] == [1, 2, 3, 4, 5]


def test_no_checkpoint_of_an_ended_trial_is_left_however_slow_its_workers_are(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    trial = make({"seed": 8})
    checkpoint = storage.trial(trial.key) / "checkpoint.pt"
    gang.begin(trial)
    assert checkpoint.exists()
    assert gang.another().is_last
    assert checkpoint.exists()
    before = workers()
    for worker in before:
        worker.suspend()
    try:
        assert gang.rest() == []
        assert not checkpoint.exists()
    finally:
        for worker in before:
            worker.resume()
    assert [epoch.epoch for epoch in gang.fit(make({"seed": 9}))] == [1, 2]
    assert workers() == before


def test_losses_that_are_not_finite_end_the_trial_but_not_the_gang(
    gang: OwnedGang, make: Make
) -> None:
    before = workers()
    with pytest.raises(TrialFailure, match="non_finite_loss"):
        gang.fit(
            make({"training.lr": 1e30, "training.clip_norm": None, "training.schedule": "constant"})
        )
    assert [epoch.epoch for epoch in gang.fit(make({"seed": 4}))] == [1, 2]
    assert workers() == before


@pytest.mark.faults
def test_a_trial_whose_worker_is_killed_resumes_in_new_workers(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    trial = make({"training.epochs": 3, "seed": 5})
    whole = gang.fit(trial)
    forget(storage, trial)
    gang.begin(trial)
    before = workers()
    assert len(before) == 2
    before[1].kill()
    with pytest.raises(ProcessLostError):
        gang.rest()
    assert held_groups() == []
    again = gang.fit(trial)
    assert [epoch.losses for epoch in again] == [epoch.losses for epoch in whole]
    assert not set(workers()) & set(before)


def test_broken_data_of_one_rank_ends_trial_and_gang(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    trial = make({"seed": 6})
    index = InlineEngine(storage).shared.splits(trial.config.data).train
    path = Path(index.paths[0])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(TrialFailure, match="bad_data"):
            gang.fit(trial)
    finally:
        path.write_bytes(content)
    assert held_groups() == []
    assert [epoch.epoch for epoch in gang.fit(trial)] == [1, 2]


def test_if_one_rank_runs_out_of_memory_all_use_half_and_the_trial_resumes_in_new_workers(
    gang: OwnedGang, storage: Storage, make: Make
) -> None:
    before = workers()
    gang.starve()
    trial = make({"training.micro_batch": "auto", "seed": 7})
    epochs = gang.logged(trial, storage)
    assert [epoch.epoch for epoch in epochs] == [1, 1, 2]
    assert [epoch.extras["micro_batch"] for epoch in epochs] == [4, 4, 2]
    log = read_log(storage)
    assert [
        (row["attempt"], row["event"], row["failure_kind"])
        for row in log.trials.to_pylist()
        if row["key"] == trial.key
    ] == [
        (1, "started", None),
        (1, "interrupted", "out_of_memory"),
        (2, "resumed", None),
        (2, "completed", None),
    ]
    assert log.epochs_of(trial.key)["attempt"].to_pylist() == [2, 2]
    assert not storage.micro_batch(trial.key).exists()
    after = workers()
    assert not set(after) & set(before)
    assert [epoch.epoch for epoch in gang.fit(make({"training.micro_batch": 2, "seed": 7}))] == [
        1,
        2,
    ]
    assert workers() == after
