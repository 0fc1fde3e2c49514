"""A trained student measured again, with pictures of what it finds."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdr.cli import evaluate
from kdr.errors import ConfigError, WeightsError
from kdr.results.reader import read_log
from kdr.training.metrics import COCO_METRICS

pytestmark = pytest.mark.slow


@pytest.fixture
def measure(trained, invoke):
    return lambda checkpoint, *arguments: (
        invoke(evaluate.command, checkpoint, "--storage", trained.storage.root, *arguments).stdout
    )


def test_the_metrics_of_the_log_are_found_again(trained, measure) -> None:
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


def test_twelve_metrics_are_printed_and_those_without_objects_say_so(trained, measure) -> None:
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


def test_the_training_images_can_be_measured(trained, measure) -> None:
    assert json.loads(measure(trained.key, "--split", "training", "--json"))["images"] == 16


def test_pictures_show_ground_truth_beside_predictions(
    trained, measure, tmp_path: Path, capfd
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


def test_boxes_below_the_lowest_score_are_not_drawn(trained, measure, tmp_path: Path) -> None:
    measure(trained.key, "--show", tmp_path / "all", "--num-shown", 1, "--min-score", 0)
    measure(trained.key, "--show", tmp_path / "none", "--num-shown", 1, "--min-score", 1)
    [every], [none] = ((tmp_path / name).glob("*.jpg") for name in ("all", "none"))
    every, none = (np.asarray(Image.open(path)).astype(int) for path in (every, none))
    assert abs(every[:, :320] - none[:, :320]).max() < 40  # the ground truth is the same
    assert abs(every[:, 328:] - none[:, 328:]).max() > 100


def test_data_of_another_study_can_be_used(trained, measure) -> None:
    found = json.loads(
        measure(trained.key, "--data", trained.study, "--set", "data.num_val=4", "--json")
    )
    assert found["images"] == 4


def test_classes_that_differ_are_refused(trained, measure) -> None:
    with pytest.raises(
        ConfigError,
        match=(
            r"--data: must have the classes of .*student\.pt, which are circle, .* got circle,"
            r" square\. "
        ),
    ):
        measure(trained.key, "--data", trained.study, "--set", "data.num_classes=2")


@pytest.mark.parametrize("given", ["no-such-key", "nowhere/student.pt", "."])
def test_weights_that_are_not_there_are_told(measure, given) -> None:
    with pytest.raises(
        WeightsError,
        match=rf"CHECKPOINT: must be a file, or the key of a trial .* got {re.escape(given)}\. ",
    ):
        measure(given)


def test_weights_without_their_sidecar_are_told(trained, measure, tmp_path: Path) -> None:
    shutil.copy(trained.weights, tmp_path)
    with pytest.raises(WeightsError, match=r"student\.json: the weights have no sidecar"):
        measure(tmp_path / "student.pt", "--data", trained.study)


def test_weights_of_a_trial_that_the_log_does_not_know_need_data(
    trained, invoke, tmp_path: Path
) -> None:
    for name in ("student.pt", "student.json"):
        shutil.copy(trained.weights.with_name(name), tmp_path)
    with pytest.raises(
        ConfigError,
        match=rf"--data: must be given, since the log of .* does not know the trial {trained.key}",
    ):
        invoke(evaluate.command, tmp_path / "student.pt", "--storage", tmp_path / "other")
    again = invoke(
        evaluate.command, tmp_path / "student.pt", "--storage", trained.storage.root, "--json"
    ).stdout
    assert json.loads(again)["images"] == 6
