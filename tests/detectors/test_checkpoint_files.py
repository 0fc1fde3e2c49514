import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdr.config.detector import DetectorConfig
from kdr.config.trial import StudentConfig
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.checkpoint_files import open_student, save_student
from kdr.detectors.detector import Detector
from kdr.detectors.sidecar import read_sidecar, weights_categories
from kdr.errors import WeightsError
from kdr.storage.local_path import LocalPath

CATEGORIES = ("circle", "square")
CONFIG = StudentConfig(
    detector="fcos", backbone="mobilenet_v3_small", fpn_channels=32, inherit=True
)


@pytest.fixture(scope="module")
def detector() -> Detector:
    return build_detector(CONFIG, CATEGORIES, seed=5)


@pytest.fixture
def path(tmp_path: Path, detector: Detector) -> Path:
    save_student(LocalPath(tmp_path / "student.pt"), detector, extra={"trial": "abc"})
    return tmp_path / "student.pt"


def test_a_saved_student_is_restored_completely(path: Path, detector: Detector) -> None:
    for opened in (open_student(path), open_student(path.parent)):
        state = opened.model.state_dict()
        assert all(
            torch.equal(state[name], value) for name, value in detector.model.state_dict().items()
        )
        assert opened.categories == CATEGORIES
        assert opened.config == DetectorConfig(
            detector="fcos", backbone="mobilenet_v3_small", fpn_channels=32
        )
    assert read_sidecar(path).extra == {"trial": "abc"}


def test_the_file_is_a_plain_state_dict_that_loads_strictly_into_torchvisions_model(
    path: Path,
) -> None:
    torchvision_model(CONFIG, len(CATEGORIES)).load_state_dict(
        torch.load(path, weights_only=True), strict=True
    )


def test_equal_weights_give_equal_bytes_and_leave_no_other_file(
    path: Path, detector: Detector
) -> None:
    again = path.parent / "again.pt"
    save_student(
        LocalPath(again), copy.deepcopy(detector).to(memory_format=torch.channels_last), extra={}
    )
    assert again.read_bytes() == path.read_bytes()
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "again.json",
        "again.pt",
        "student.json",
        "student.pt",
    ]


def test_a_student_with_frozen_norm_and_enum_weights_is_restored_without_them(
    tmp_path: Path,
) -> None:
    config = DetectorConfig(
        backbone="mobilenet_v3_small",
        fpn_channels=32,
        norm="frozen",
        weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
        trainable_stages=3,
    )
    student = build_detector(config, CATEGORIES, seed=0, new_classes=True)
    save_student(LocalPath(tmp_path / "student.pt"), student, extra={})
    opened = open_student(tmp_path / "student.pt")
    body: Any = opened.model.get_submodule("backbone.body")
    assert body["0"][1].eps == 0.0
    assert opened.categories == CATEGORIES
    assert not body["1"].block[0][0].weight.requires_grad


def test_opening_does_not_change_the_global_generator(path: Path) -> None:
    torch.manual_seed(2)
    expected = torch.rand(4)
    torch.manual_seed(2)
    open_student(path)
    assert torch.equal(torch.rand(4), expected)


def test_class_names_come_from_the_sidecar(path: Path) -> None:
    assert weights_categories(str(path)) == CATEGORIES
    named = build_detector(
        CONFIG.with_changes(weights=str(path)), ("star", "cross", "ring"), seed=0
    )
    assert named.categories == CATEGORIES
    path.with_suffix(".json").unlink()
    assert weights_categories(str(path)) is None


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    change(content)
    sidecar.write_text(json.dumps(content))


def test_missing_files_are_reported_by_name(path: Path) -> None:
    path.with_suffix(".json").unlink()
    with pytest.raises(
        WeightsError,
        match=r"student\.json: the weights have no sidecar\. Copy this file as well",
    ):
        open_student(path)
    path.unlink()
    with pytest.raises(WeightsError, match=r"student\.pt: no such weights file\. Check the path"):
        open_student(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda c: c.update(format="other"),
            r"must have the format 'kdr student 1', got 'other'",
            id="format",
        ),
        pytest.param(
            lambda c: c.pop("categories"),
            r"needs detector, categories.* missing or damaged: 'categories'",
            id="missing part",
        ),
        pytest.param(
            lambda c: c["detector"].update(neck=1),
            r"detector\.neck: no such setting",
            id="unknown setting",
        ),
        pytest.param(
            lambda c: c.update(weights_id="file-0"),
            r"student\.pt: is file-\w+, but .* describes file-0\. Export",
            id="pair",
        ),
        pytest.param(
            lambda c: c["categories"].append("x"),
            r"does not fit the detector in its sidecar",
            id="classes",
        ),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    edited(path, change)
    with pytest.raises(WeightsError, match=message):
        open_student(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot read the sidecar"), ("[]", "must be a JSON object, got list")],
)
def test_a_damaged_sidecar_is_refused(path: Path, text: str, message: str) -> None:
    path.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        open_student(path)
