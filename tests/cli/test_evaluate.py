"""`evaluate` measures a trained student and draws its predictions."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdr.cli import evaluate
from kdr.errors import ConfigError, WeightsError
from kdr.results.reader import read_log
from kdr.training.metrics import COCO_METRICS
from tests.cli.conftest import Invoke, Trained

pytestmark = pytest.mark.slow
Measure = Callable[..., str]
"""Runs `evaluate` with a checkpoint and options; returns what it prints."""


@pytest.fixture
def measure(trained: Trained, invoke: Invoke) -> Measure:
    return lambda checkpoint, *arguments: (
        invoke(evaluate.command, checkpoint, "--storage", trained.storage.root, *arguments).stdout
    )


def test_evaluate_reproduces_the_logged_metrics(trained: Trained, measure: Measure) -> None:
    by_key, by_path = (
        json.loads(measure(given, "--json")) for given in (trained.key, trained.weights)
    )
    assert by_key == by_path
    assert by_key["images"] == 6
    logged = read_log(trained.storage).epochs_of(trained.key).to_pylist()[-1]
    assert {name: by_key[name] for name in COCO_METRICS[:6]} == {
        name: logged[name] for name in COCO_METRICS[:6]
    }
    assert by_key["per_class"] == dict(logged["ap_per_class"])


def test_twelve_metrics_are_printed_with_a_dash_where_there_are_no_objects(
    trained: Trained, measure: Measure
) -> None:
    lines = measure(trained.key).splitlines()
    assert lines[0] == str(trained.weights)
    assert lines[1].startswith("val.json: 6 images, ")
    values = dict(line.split() for line in lines[3:15])
    assert tuple(values) == COCO_METRICS
    without = {name for name, value in values.items() if value == "-"}
    assert without == {"APm", "APl", "ARm", "ARl"}  # every object is smaller than 32 x 32 pixels
    assert all(
        re.fullmatch(r"[01]\.\d{4}", value) for name, value in values.items() if name not in without
    )
    assert float(values["AR100"]) > 0
    assert lines[15].split() == ["class", "AP", "value"]


def test_the_training_images_can_be_measured(trained: Trained, measure: Measure) -> None:
    assert json.loads(measure(trained.key, "--split", "training", "--json"))["images"] == 16


def test_pictures_show_ground_truth_beside_predictions(
    trained: Trained, measure: Measure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(
        measure(trained.key, "--show", tmp_path, "--num-shown", 3, "--min-score", 0, "--json")
    )
    assert found["images"] == 6
    paths = sorted(tmp_path.iterdir())
    assert len(paths) == 3
    for path in paths:
        picture = np.asarray(Image.open(path)).astype(int)
        assert picture.shape == (320, 320 + 8 + 320, 3)
        left, gap, right = picture[:, :320], picture[:, 320:328], picture[:, 328:]
        assert gap.mean() > 250
        lime = (left[..., 1] > 200) & (left[..., 0] < 90) & (left[..., 2] < 90)
        orange = (right[..., 0] > 200) & (abs(right[..., 1] - 165) < 40) & (right[..., 2] < 90)
        assert lime.sum() > 200
        assert orange.sum() > 200


def test_boxes_below_the_lowest_score_are_not_drawn(
    trained: Trained, measure: Measure, tmp_path: Path
) -> None:
    measure(trained.key, "--show", tmp_path / "all", "--num-shown", 1, "--min-score", 0)
    measure(trained.key, "--show", tmp_path / "none", "--num-shown", 1, "--min-score", 1)
    every, none = (
        np.asarray(Image.open(path)).astype(int)
        for name in ("all", "none")
        for path in (tmp_path / name).glob("*.jpg")
    )
    assert abs(every[:, :320] - none[:, :320]).max() < 40  # the ground truth is the same
    assert abs(every[:, 328:] - none[:, 328:]).max() > 100


def test_data_of_another_study_can_be_used(trained: Trained, measure: Measure) -> None:
    found = json.loads(
        measure(trained.key, "--data", trained.study, "--set", "data.num_val=4", "--json")
    )
    assert found["images"] == 4


def test_other_classes_are_refused(trained: Trained, measure: Measure) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"--data: must have the classes of .*student\.pt \(circle, .*\), got circle,"
            r" square\. "
        ),
    ):
        measure(trained.key, "--data", trained.study, "--set", "data.num_classes=2")


@pytest.mark.parametrize("given", ["no-such-key", "nowhere/student.pt", "."])
def test_missing_weights_are_an_error(measure: Measure, given: str) -> None:
    with pytest.raises(
        WeightsError,
        match=rf"CHECKPOINT: must be a file, or the key of a trial .* got {re.escape(given)}\. ",
    ):
        measure(given)


def test_weights_without_a_sidecar_are_an_error(
    trained: Trained, measure: Measure, tmp_path: Path
) -> None:
    shutil.copy(trained.weights, tmp_path)
    with pytest.raises(WeightsError, match=r"student\.json: the weights have no sidecar"):
        measure(tmp_path / "student.pt", "--data", trained.study)


def test_weights_of_an_unknown_trial_need_data(
    trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    for name in ("student.pt", "student.json"):
        shutil.copy(trained.weights.with_name(name), tmp_path)
    with pytest.raises(
        ConfigError,
        match=rf"--data: required, because trial {trained.key} of .* is not in the log of ",
    ):
        invoke(evaluate.command, tmp_path / "student.pt", "--storage", tmp_path / "other")
    again = invoke(
        evaluate.command, tmp_path / "student.pt", "--storage", trained.storage.root, "--json"
    ).stdout
    assert json.loads(again)["images"] == 6
