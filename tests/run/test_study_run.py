"""A whole study on a real local Ray: what it leaves in the log, and that nothing is run twice."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.errors import ResourcesError, StorageError, TrialFailure
from kdr.report.ranking import ranking
from kdr.results.flat_settings import canonical
from kdr.results.reader import read_log
from kdr.run.observer import TrialUpdate
from kdr.run.study_run import Outcome, run_study
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.fit import fit

pytestmark = pytest.mark.ray

SEARCH: dict[str, Any] = {
    "study": "small",
    "trial": {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 24,
            "num_val": 8,
            "search_split": 8,
        },
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "search": {
        "trials": 4,
        "stop_early": {"asha": {"grace_epochs": 1, "reduction": 2}},
        "parameters": {
            "distill.kdr.weight": {"float": [0.1, 50], "log": True},
            "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4"]},
        },
        "enqueue": [{"distill.kdr.review_links": ["P4->P3"]}],
    },
    "resources": {"max_concurrent": 1},
}


class Recorder:
    """Records everything."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.updates: list[TrialUpdate] = []
        self.findings: list[Any] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def finding(self, finding: Any) -> None:
        self.findings.append(finding)

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        self.phases.append(f"{num_trials} trials, {num_done} done, {num_concurrent} at a time")

    def update(self, progress: TrialUpdate) -> None:
        self.updates.append(progress)


def study_with(**changes: Any) -> Study:
    content = json.loads(json.dumps(SEARCH))
    for path, value in changes.items():
        group = content
        *parents, name = path.split("__")
        for parent in parents:
            group = group[parent]
        group[name] = value
    return study_from(content, folder=Path())


@pytest.fixture(scope="module")
def first_run(
    ray_here: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Study, Storage, Outcome, Recorder]:
    study = study_with()
    storage = Storage.at(tmp_path_factory.mktemp("storage"))
    recorder = Recorder()
    return study, storage, run_study(study, storage=storage, observer=recorder), recorder


def test_every_trial_of_a_search_is_in_the_log_with_its_end(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    _, storage, outcome, _ = first_run
    log = read_log(storage)
    states = log.states_of("small")
    students = [state for state in states.values() if state.role == "student"]
    assert outcome.num_run == len(students) == 4
    assert outcome.num_failed == 0
    assert {state.state for state in students} <= {"completed", "stopped_early"}
    assert any(state.state == "completed" and state.epoch == 2 for state in students)
    for state in students:
        assert state.epoch == len(log.epochs_of(state.key))
        assert state.last.teacher_id in log.states()
        assert state.last.commit
        assert state.metrics["AP"] is not None
    assert sum(len(row["parameters"]) > 2 for row in log.arms_of("small")) == 4


def test_the_teacher_is_trained_once_and_first(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    _, storage, _, recorder = first_run
    teachers = [state for state in read_log(storage).states().values() if state.role == "teacher"]
    assert [(state.state, state.attempt) for state in teachers] == [("completed", 1)]
    assert recorder.updates[0].name == "teacher"
    assert (storage.trial(teachers[0].key) / "student.pt").exists()


def test_only_the_best_weights_are_kept(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    _, storage, _, _ = first_run
    students = [state for state in read_log(storage).states().values() if state.role == "student"]
    kept = [
        state
        for state in students
        if any(
            (storage.trial(state.key) / name).exists() for name in ("student.pt", "checkpoint.pt")
        )
    ]
    assert len(kept) == 1
    assert kept[0].metrics["AP"] == max(state.metrics["AP"] or 0.0 for state in students)


def test_a_trial_of_the_sweep_has_the_bits_of_the_same_trial_run_alone(
    first_run: tuple[Study, Storage, Outcome, Recorder], tmp_path: Path
) -> None:
    study, storage, _, _ = first_run
    log = read_log(storage)
    last = [row for row in log.arms_of("small") if log.states()[row["key"]].state == "completed"][
        -1
    ]
    trial = trial_maker(study, storage)(study.trial_with(json.loads(last["parameters"])))
    assert trial.key == last["key"]
    (storage.trial(trial.key) / "student.pt").unlink(missing_ok=True)
    alone = list(fit(trial, storage=storage))
    logged = log.epochs_of(trial.key).to_pylist()
    assert [dict(row["losses"]) for row in logged] == [epoch.losses for epoch in alone]
    assert [row["AP"] for row in logged] == [
        epoch.evaluation.metrics["AP"] for epoch in alone if epoch.evaluation
    ]


def test_the_same_study_again_runs_nothing(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    study, storage, _, _ = first_run
    before = read_log(storage).trials.num_rows
    outcome = run_study(study, storage=storage, observer=Recorder())
    assert (outcome.num_run, outcome.num_failed, outcome.interrupted) == (0, 0, False)
    assert read_log(storage).trials.num_rows == before


def test_a_larger_budget_runs_what_is_missing_with_the_same_teacher(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    _, storage, _, _ = first_run
    recorder = Recorder()
    outcome = run_study(study_with(search__trials=5), storage=storage, observer=recorder)
    assert outcome.num_run == 1
    assert "Training the teacher" not in recorder.phases
    assert (
        len([state for state in read_log(storage).states().values() if state.role == "student"])
        == 5
    )


def test_a_trial_that_another_study_ran_is_known(
    first_run: tuple[Study, Storage, Outcome, Recorder],
) -> None:
    _, storage, _, _ = first_run
    before = read_log(storage)
    theirs = next(
        row for row in before.arms_of("small") if before.states()[row["key"]].state == "completed"
    )
    point = json.loads(theirs["parameters"])
    other = study_with(study="other", search__trials=1, search__enqueue=[point])
    for num_run in (1, 0):  # the second time, nothing is missing
        assert run_study(other, storage=storage, observer=Recorder()).num_run == num_run
        trials = {trial.key: trial for trial in ranking(read_log(storage), "other")}
        assert [trial.state.last.study for trial in trials.values()].count(
            "other"
        ) == 1  # its sampler also proposes others of their trials
        assert trials[theirs["key"]].state == before.states()[theirs["key"]]
        assert trials[theirs["key"]].parameters == {
            path: canonical(value) for path, value in point.items()
        }


def test_a_study_of_one_trial_uses_the_result_of_another_study(
    first_run: tuple[Study, Storage, Outcome, Recorder], tmp_path: Path
) -> None:
    _, storage, _, _ = first_run
    log = read_log(storage)
    theirs = next(
        row for row in log.arms_of("small") if log.states()[row["key"]].state == "completed"
    )
    content = json.loads(json.dumps(SEARCH)) | {"study": "one"}
    del content["search"]
    content["trial"] = changed(content["trial"], json.loads(theirs["parameters"]))
    one = study_from(content, folder=Path())
    for _ in range(2):
        assert run_study(one, storage=storage, observer=Recorder()).num_run == 0
        assert [trial.key for trial in ranking(read_log(storage), "one")] == [theirs["key"]]
    assert read_log(storage).arms_of("one")[0]["arm"] == "trial-0001"


def test_a_failing_trial_ends_alone_and_its_kind_is_logged(ray_here: None, tmp_path: Path) -> None:
    parameters = {"training.lr": {"choice": [1e-3, 1e30]}}
    study = study_with(
        study="failing",
        search__parameters=parameters,
        search__sampler={"grid": {}},
        search__enqueue=[],
        search__stop_early="none",
        trial__distill={},  # so that no teacher is trained
        trial__training={
            "epochs": 1,
            "batch_size": 8,
            "optimizer": "sgd",
            "lr": 1e-3,
            "clip_norm": None,
            "warmup_steps": 0,
        },
    )
    outcome = run_study(study, storage=Storage.at(tmp_path), observer=Recorder())
    assert (outcome.num_run, outcome.num_failed) == (2, 1)
    states = {
        state.state: state
        for state in read_log(Storage.at(tmp_path)).states().values()
        if state.role == "student"
    }
    assert states["failed"].last.failure_kind == "non_finite_loss"
    assert "NaN or infinite in epoch 1" in (states["failed"].last.reason or "")
    assert "TrialFailure" in (states["failed"].last.traceback or "")
    assert states["completed"].epoch == 1


def test_a_study_without_search_is_its_one_trial(ray_here: None, tmp_path: Path) -> None:
    content = {**json.loads(json.dumps(SEARCH)), "study": "single"}
    del content["search"]
    content["trial"]["distill"] = {}
    content["trial"]["training"]["epochs"] = 1
    study, storage = study_from(content, folder=Path()), Storage.at(tmp_path)
    assert run_study(study, storage=storage, observer=Recorder()).num_run == 1
    [state] = read_log(storage).states().values()
    assert (state.role, state.state) == ("student", "completed")
    assert run_study(study, storage=storage, observer=Recorder()).num_run == 0


def test_a_teacher_that_fails_ends_the_study(ray_here: None, tmp_path: Path) -> None:
    training = {
        "epochs": 1,
        "batch_size": 8,
        "optimizer": "sgd",
        "lr": 1e30,
        "clip_norm": None,
        "warmup_steps": 0,
    }
    study = study_with(study="bad-teacher", trial__teacher__training=training)
    with pytest.raises(TrialFailure, match="the teacher could not be trained"):
        run_study(study, storage=Storage.at(tmp_path), observer=Recorder())


def test_gpu_hours_without_gpus_are_refused_because_they_would_never_be_used_up(
    ray_here: None, tmp_path: Path
) -> None:
    study = study_with(
        study="gpu", search__trials=None, search__gpu_hours=2, resources__gpus_per_worker=0
    )
    with pytest.raises(
        ResourcesError,
        match=(
            r"search\.gpu_hours: needs trials that hold GPUs, got 2 for trials that hold none .*"
            r" Use search\.trials"
        ),
    ):
        run_study(study, storage=Storage.at(tmp_path), observer=Recorder())


def test_a_machine_too_small_for_one_trial_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ResourcesError, match=r"one trial needs 4096 CPUs, got \d+ on this machine"):
        run_study(
            study_with(resources={"cpus_per_worker": 4096}),
            storage=Storage.at(tmp_path),
            observer=Recorder(),
        )


def test_storage_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"--storage: must be a writable folder, got .*file"):
        run_study(study_with(), storage=Storage.at(tmp_path / "file"), observer=Recorder())
