"""The pre-flight of a study on a real local Ray: it refuses a study before its first trial, and is
measured once."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.errors import PreflightError
from kdr.results.reader import read_log
from kdr.run.cluster.ray_session import ray_session
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.preflight import check_before_start
from kdr.run.study_run import run_study
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.findings import Finding

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_here")]

SMALL: dict[str, Any] = {
    "study": "small",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 4},
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
            "stated_ap": 0.9,
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    },
    "resources": {"max_concurrent": 1},
}


class Recorder:
    """Records phases and findings."""

    def __init__(self) -> None:
        self.phases: list[str] = []
        self.findings: list[Finding] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def finding(self, finding: Finding) -> None:
        self.findings.append(finding)

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Not recorded."""

    def update(self, progress: Any) -> None:
        """Not recorded."""


def study_with(changes: dict[str, Any]) -> Study:
    return study_from(changed(SMALL, changes), folder=Path("/"))


def test_a_failed_pre_flight_ends_the_run_after_the_teacher_and_before_the_first_trial(
    tmp_path: Path,
) -> None:
    storage, recorder = Storage.at(tmp_path), Recorder()
    with pytest.raises(PreflightError) as failure:
        run_study(study_with({}), storage=storage, observer=recorder, preflight=True)
    lines = str(failure.value).splitlines()
    assert lines[0].startswith(
        "pre-flight: teacher's AP: trial.teacher.stated_ap: must be met within 0.010, got 0.9 "
        "and AP "
    )
    assert lines[1:] == ["The study was not started. To run it anyway, pass --no-preflight"]
    assert recorder.phases[-2:] == ["Training the teacher", "Pre-flight"]
    assert [finding.name for finding in recorder.findings if finding.state == "failed"] == [
        "teacher's AP"
    ]
    base = trial_maker(study_with({}), storage)(study_with({}).base)
    assert list(read_log(storage).states()) == [base.teacher_id]

    # measured once: another stated AP is compared with the saved measurement
    folder = tmp_path / "preflight" / "small"
    [kept] = folder.glob("*.json")
    content = json.loads(kept.read_text())
    content["preflight"]["losses"] = {"classification": 0.125}
    kept.write_text(json.dumps(content))
    recorder = Recorder()
    sound = study_with({"trial.teacher.stated_ap": content["preflight"]["teacher_ap"]})
    assert run_study(sound, storage=storage, observer=recorder, preflight=True).num_run == 1
    assert recorder.phases[-2:] == ["Pre-flight", "Running trials"]
    assert [finding.text for finding in recorder.findings if finding.name == "losses"] == [
        "in the first batch, after ramps: classification 0.125"
    ]
    assert len(list(folder.glob("masks-*.png"))) == 4


def test_it_is_a_task_of_ray_if_trials_use_gpus_or_a_cluster(tmp_path: Path) -> None:
    storage, recorder = Storage.at(tmp_path), Recorder()
    study = study_with({"trial.teacher": None, "trial.distill": {}})
    needed = ResolvedResources()
    with ray_session(None):
        check = partial(
            check_before_start, storage=storage, observer=recorder, needed=needed, local=False
        )
        check(study, trial_maker(study, storage)(study.base))
        assert [finding.name for finding in recorder.findings] == ["loaded", "losses"]
        (tmp_path / "broken.pt").write_bytes(b"nothing")
        broken = study_with(
            {
                "trial.teacher": None,
                "trial.distill": {},
                "trial.student.weights": str(tmp_path / "broken.pt"),
            }
        )
        with pytest.raises(PreflightError, match=r"pre-flight: .*broken\.pt: torch\.load.* cannot"):
            check(broken, trial_maker(broken, storage)(broken.base))
