"""A probe times a few steps of a trial and leaves nothing behind."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import study_from
from kdr.config.trial import Trial
from kdr.errors import OutOfMemory
from kdr.plan.keys import make_trial
from kdr.storage.layout import Storage
from kdr.training.probe import STEPS, WARM_UP, _Clock, probe

MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 8},
    "teacher": {**MOBILENET, "training": {"epochs": 3, "batch_size": 8}},
    "student": MOBILENET,
    "distill": {"kdr": {}},
    "training": {"epochs": 5, "batch_size": 8, "eval_every_epochs": 2, "step_epochs": [2, 4]},
}


def trial_and_teacher() -> tuple[Trial, Trial]:
    study = study_from({"study": "s", "trial": TRIAL}, folder=Path("/"))
    trial = make_trial(study.base, data_id="data", weights_id=str)
    teacher = study.base.teacher_trial()
    assert teacher is not None
    return trial, make_trial(teacher, data_id="data", weights_id=str)


@pytest.mark.slow
def test_a_trial_and_its_teacher_are_timed_and_only_generated_images_are_kept(
    tmp_path: Path,
) -> None:
    trial, teacher = trial_and_teacher()
    of_teacher, of_trial = probe(trial, teacher, storage=Storage.at(tmp_path))
    # 2 steps per epoch; evaluated after epochs 2, 4 and 5
    assert of_trial.seconds == pytest.approx(5 * 2 * of_trial.step_s + 3 * of_trial.evaluation_s)
    assert of_teacher.seconds == pytest.approx(
        3 * 2 * of_teacher.step_s + 3 * of_teacher.evaluation_s
    )
    assert min(of_trial.step_s, of_trial.evaluation_s) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_pass_stops_after_a_few_batches_and_is_extrapolated() -> None:
    clock = _Clock()
    seen = list(clock(iter(range(100)), 100, "epoch"))  # type: ignore[arg-type]
    assert len(seen) == WARM_UP + STEPS
    assert clock.seconds("epoch") == pytest.approx(100 * clock.step("epoch"))
    assert clock.spent("epoch") >= STEPS * clock.step("epoch")


@pytest.mark.slow
def test_under_auto_a_trial_is_timed_with_passes_that_fit(
    tmp_path: Path, room_for_two: None
) -> None:
    plain = {**TRIAL, "teacher": None, "distill": {}}
    of_passes = {**plain, "training": {**TRIAL["training"], "micro_batch": "auto"}}
    trials = [
        make_trial(
            study_from({"study": "s", "trial": each}, folder=Path("/")).base,
            data_id="d",
            weights_id=str,
        )
        for each in (of_passes, plain)
    ]
    [found] = probe(trials[0], None, storage=Storage.at(tmp_path))
    assert found.micro_batch == 2
    assert found.step_s > 0
    with pytest.raises(OutOfMemory):
        probe(trials[1], None, storage=Storage.at(tmp_path))
