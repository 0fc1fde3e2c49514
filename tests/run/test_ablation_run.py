"""A whole ablation on a real local Ray: arms by seeds in the log, each trial once."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.report.progress import study_progress
from kdr.results.reader import read_log
from kdr.results.schema import utc_now
from kdr.run.observer import TrialUpdate
from kdr.run.study_run import Outcome, run_study
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage

pytestmark = pytest.mark.ray

CONTENT: dict[str, Any] = {
    "study": "parts",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 8},
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {
            "epochs": 1,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "ablation": {
        "factors": {"review": {"off": {"distill.kdr.review_links": []}}},
        "seeds": [10, 11],
    },
    "resources": {"max_concurrent": 1},
}


class Recorder:
    """Records plans and updates."""

    def __init__(self) -> None:
        self.plans: list[tuple[int | None, int, int]] = []
        self.updates: list[TrialUpdate] = []

    def phase(self, text: str) -> None:
        """Not recorded."""

    def finding(self, finding: Any) -> None:
        """Not recorded."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        self.plans.append((num_trials, num_done, num_concurrent))

    def update(self, progress: TrialUpdate) -> None:
        self.updates.append(progress)

    def started(self) -> list[str]:
        """Returns the names of the trials, in the order in which they started."""
        return list(
            dict.fromkeys(update.name for update in self.updates if update.state == "running")
        )


def study_with(changes: dict[str, Any]) -> Study:
    return study_from(changed(CONTENT, changes), folder=Path("/"))


def run(study: Study, storage: Storage) -> tuple[Outcome, Recorder]:
    recorder = Recorder()
    return run_study(study, storage=storage, observer=recorder), recorder


@pytest.fixture(scope="module")
def first_run(
    ray_here: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Storage, Outcome, Recorder]:
    storage = Storage.at(tmp_path_factory.mktemp("storage"))
    return storage, *run(study_with({}), storage)


def test_arms_are_trained_seed_by_seed_after_one_teacher(
    first_run: tuple[Storage, Outcome, Recorder],
) -> None:
    _, outcome, recorder = first_run
    assert (outcome.num_run, outcome.num_failed) == (4, 0)
    assert recorder.started() == [
        "teacher",
        "baseline, seed 10",
        "review=off, seed 10",
        "baseline, seed 11",
        "review=off, seed 11",
    ]


def test_the_log_says_which_trial_is_which_arm(
    first_run: tuple[Storage, Outcome, Recorder],
) -> None:
    storage, _, _ = first_run
    log, study = read_log(storage), study_with({})
    rows = log.ablation_arms_of("parts")
    assert [
        (row["arm"], row["seed"], json.loads(row["levels"]), row["is_reference"]) for row in rows
    ] == [
        ("baseline", 10, {"review": "baseline"}, True),
        ("review=off", 10, {"review": "off"}, False),
        ("baseline", 11, {"review": "baseline"}, True),
        ("review=off", 11, {"review": "off"}, False),
    ]
    make = trial_maker(study, storage)
    assert [row["key"] for row in rows] == [
        make(study.trial_with(json.loads(row["parameters"]))).key for row in rows
    ]
    assert {log.states()[row["key"]].state for row in rows} == {"completed"}
    assert rows[-1]["time"] < min(state.last.time for state in log.states().values())
    first_batches = {
        row["key"]: log.epochs_of(row["key"]).to_pylist()[0]["first_batch_hash"] for row in rows
    }
    assert [first_batches[rows[0]["key"]], first_batches[rows[2]["key"]]] == [
        first_batches[rows[1]["key"]],
        first_batches[rows[3]["key"]],
    ]


def test_the_same_ablation_again_runs_nothing_and_writes_nothing(
    first_run: tuple[Storage, Outcome, Recorder],
) -> None:
    storage, _, _ = first_run
    before = read_log(storage)
    outcome, recorder = run(study_with({}), storage)
    assert (outcome.num_run, recorder.updates) == (0, [])
    after = read_log(storage)
    assert (after.trials.num_rows, after.arms.num_rows) == (
        before.trials.num_rows,
        before.arms.num_rows,
    )


def test_an_added_arm_runs_alone_and_known_trials_of_any_study_are_arms_of_this_one(
    first_run: tuple[Storage, Outcome, Recorder],
) -> None:
    storage, _, _ = first_run
    factors = {**CONTENT["ablation"]["factors"], "weight": {"huge": {"distill.kdr.weight": 30.0}}}
    more = study_with({"study": "more", "ablation.factors": factors, "ablation.seeds": [11]})
    outcome, recorder = run(more, storage)
    assert (outcome.num_run, recorder.plans) == (1, [(3, 2, 1)])
    assert recorder.started() == ["weight=huge, seed 11"]
    progress = study_progress(read_log(storage), "more", now=utc_now())
    assert [(arm.name, arm.counts, arm.num_seeds) for arm in progress.arms] == [
        ("baseline", {"completed": 1}, 1),
        ("review=off", {"completed": 1}, 1),
        ("weight=huge", {"completed": 1}, 1),
    ]
    assert (progress.is_over, progress.total) == (True, 3)


def test_a_failed_trial_stops_neither_its_arm_nor_the_study_and_arms_that_are_one_trial_run_once(
    first_run: tuple[Storage, Outcome, Recorder],
) -> None:
    storage, _, _ = first_run
    factors = {
        "review": {"off": {"distill.kdr.review_links": []}},
        "attention": {"off": {"distill.kdr.attention": "none"}},
        "lr": {
            "infinite": {
                "training.lr": 1e30,
                "training.clip_norm": None,
                "training.optimizer": "sgd",
            }
        },
    }
    leave_out = [{"review": "off", "lr": "infinite"}, {"attention": "off", "lr": "infinite"}]
    ablation = {"factors": factors, "design": "factorial", "leave_out": leave_out, "seeds": [10]}
    outcome, recorder = run(study_with({"study": "factorial", "ablation": ablation}), storage)
    assert (outcome.num_run, outcome.num_failed) == (2, 1)
    assert recorder.started() == ["lr=infinite, seed 10", "attention=off, seed 10"]
    rows = read_log(storage).ablation_arms_of("factorial")
    keys = {row["arm"]: row["key"] for row in rows}
    assert keys["review=off"] == keys["review=off, attention=off"]
    assert len(set(keys.values())) == len(keys) - 1
    again, _ = run(study_with({"study": "factorial", "ablation": ablation}), storage)
    assert (again.num_run, again.num_failed) == (1, 1), "failed trials are retried"
