"""Studies of one cluster that need the same teacher and trials at the same time: each is trained
once."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import read_study
from kdr.results.reader import read_log
from kdr.run.attempt.logged_fit import teacher_of
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from tests.faults.invariants import check_log, check_nothing_is_left, results_of
from tests.faults.processes import Run, finished

pytestmark = [pytest.mark.faults, pytest.mark.ray]

TRAINING = {"epochs": 6, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"}
MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 32, "num_val": 8},
    "teacher": {**MOBILENET, "training": TRAINING},
    "student": MOBILENET,
    "distill": {"kdr": {}},
    "training": TRAINING,
}
STUDIES: dict[str, dict[str, Any]] = {
    "ablation": {
        "ablation": {
            "design": "arms",
            "arms": {"light": {"distill.kdr.weight": 0.5}},
            "seeds": [0, 1],
        }
    },
    "grid": {
        "search": {
            "parameters": {"distill.kdr.weight": {"choice": [3.0, 0.5, 2.0]}},
            "sampler": "grid",
        }
    },
    "one": {},
}
"""Of the four trials of the first, the second has two, and one more; the third has one of them. All
have the same teacher."""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("studies")
    for name, content in STUDIES.items():
        # JSON is YAML
        (folder / f"{name}.yaml").write_text(json.dumps({"study": name, "trial": TRIAL, **content}))
    return {name: folder / f"{name}.yaml" for name in STUDIES}


def students_of(storage: Storage, study: str) -> dict[str, Any]:
    """A study's results for its students, without the rank: of two equal trials it depends on which
    was first."""
    log = check_log(storage, study)
    check_nothing_is_left(storage, log)
    teachers = {key for key, state in log.states().items() if state.role == "teacher"}
    return {
        key: (state, epoch, *numbers)
        for key, (state, epoch, _rank, *numbers) in results_of(storage, study).items()
        if key not in teachers
    }


def test_studies_that_start_at_the_same_time_train_each_common_trial_once(
    studies: dict[str, Path],
    address: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "three studies with a common teacher and trials, started together")
    quiet, storage = Storage.at(tmp_path / "quiet"), Storage.at(tmp_path / "at-once")
    for path in studies.values():
        finished(Run(path, quiet, "--address", address))
    texts = finished(*(Run(path, storage, "--address", address) for path in studies.values()))
    for name in studies:
        assert students_of(storage, name) == students_of(quiet, name)
    rows = read_log(storage).trials.to_pylist()
    events = {
        key: [(row["attempt"], row["event"]) for row in rows if row["key"] == key]
        for key in {row["key"] for row in rows}
    }
    assert len(events) == 6
    assert all(
        events_of_one == [(1, "started"), (1, "completed")] for events_of_one in events.values()
    ), events
    waited = [text for text in texts if "Waiting for a trial trained by study " in text]
    assert waited  # for the teacher


def test_a_study_that_waits_for_a_trial_trains_it_itself_once_the_other_driver_is_killed(
    studies: dict[str, Path],
    address: str,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "kill -9 of a driver whose trial another study waits for")
    quiet, storage = Storage.at(tmp_path / "quiet"), Storage.at(tmp_path / "killed")
    options = (
        "--address",
        address,
        "--set",
        "training.epochs=40",
        "--set",
        "resources.max_concurrent=1",
    )
    finished(Run(studies["one"], quiet, *options))
    first = Run(studies["ablation"], storage, *options)
    try:
        first.wait_for("its first trial", lambda: "baseline, seed 0  epoch 1/" in first.text())
        second = Run(studies["one"], storage, *options)
        try:
            waits = "Waiting for a trial trained by study ablation"
            second.wait_for("its trial, which the other one trains", lambda: waits in second.text())
            first.driver.kill()
            [text] = finished(second)
        finally:
            second.close()
    finally:
        first.close()
    assert "1 trial run in" in text
    found = students_of(storage, "one")
    assert found == students_of(quiet, "one")
    [key] = found
    rows = [row for row in read_log(storage).trials.to_pylist() if row["key"] == key]
    assert [(row["study"], row["attempt"], row["event"]) for row in rows] == [
        ("ablation", 1, "started"),
        ("one", 2, "resumed"),
        ("one", 2, "completed"),
    ]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_waiting_study_ends_cleanly_when_it_is_interrupted(
    number: int, code: int, studies: dict[str, Path], address: str, tmp_path: Path
) -> None:
    storage, study = Storage.at(tmp_path), read_study(studies["one"])
    teacher = teacher_of(trial_maker(study, storage)(study.base))
    assert teacher is not None
    with (
        sole_driver(storage, "other", on_waiting=pytest.fail) as driver,
        TrialClaims(storage, "other", driver) as claims,
    ):
        claims.take([teacher.key])
        run = Run(studies["one"], storage, "--address", address)
        try:
            run.wait_for(
                "the teacher",
                lambda: "Waiting for a trial trained by study other" in run.text(),
            )
            run.driver.send_signal(number)
            assert run.ended() == code
            assert "Finished work is in the log; the same command resumes." in run.text()
        finally:
            run.close()
    assert read_log(storage).trials.num_rows == 0
    assert list(storage.local.glob("drivers/*/*")) == []
