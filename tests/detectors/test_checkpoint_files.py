import copy
import json

import pytest
import torch

from kdr.config.detector import DetectorConfig
from kdr.config.trial import StudentConfig
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.checkpoint_files import open_student, save_student
from kdr.detectors.sidecar import read_sidecar, weights_categories
from kdr.errors import WeightsError
from kdr.storage.local_path import LocalPath

CATEGORIES = ("circle", "square")
CONFIG = StudentConfig(
    detector="fcos", backbone="mobilenet_v3_small", fpn_channels=32, inherit=True
)


@pytest.fixture(scope="module")
def detector():
    return build_detector(CONFIG, CATEGORIES, seed=5)


@pytest.fixture
def path(tmp_path, detector):
    save_student(LocalPath(tmp_path / "student.pt"), detector, extra={"trial": "abc"})
    return tmp_path / "student.pt"


def test_a_saved_student_is_rebuilt_with_all_that_it_was(path, detector):
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


def test_the_file_is_a_plain_state_dict_that_loads_strictly_into_torchvisions_model(path):
    torchvision_model(CONFIG, len(CATEGORIES)).load_state_dict(
        torch.load(path, weights_only=True), strict=True
    )


def test_equal_weights_give_equal_bytes_and_no_other_file_is_left(path, detector):
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


def test_a_student_of_frozen_norm_and_enum_weights_is_rebuilt_without_them(tmp_path):
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
    assert opened.model.backbone.body["0"][1].eps == 0.0
    assert opened.categories == CATEGORIES
    assert not opened.model.backbone.body["1"].block[0][0].weight.requires_grad


def test_opening_leaves_the_global_generator_as_it_was(path):
    torch.manual_seed(2)
    expected = torch.rand(4)
    torch.manual_seed(2)
    open_student(path)
    assert torch.equal(torch.rand(4), expected)


def test_class_names_come_from_the_sidecar(path):
    assert weights_categories(str(path)) == CATEGORIES
    named = build_detector(
        CONFIG.with_changes(weights=str(path)), ("star", "cross", "ring"), seed=0
    )
    assert named.categories == CATEGORIES
    path.with_suffix(".json").unlink()
    assert weights_categories(str(path)) is None


def edited(path, change):
    sidecar = path.with_suffix(".json")
    content = json.loads(sidecar.read_text())
    change(content)
    sidecar.write_text(json.dumps(content))


def test_missing_files_are_named(path):
    path.with_suffix(".json").unlink()
    with pytest.raises(
        WeightsError,
        match=r"student\.json: the sidecar must lie beside the weights, got nothing there",
    ):
        open_student(path)
    path.unlink()
    with pytest.raises(
        WeightsError, match=r"student\.pt: must be a weights file .* got nothing there"
    ):
        open_student(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda c: c.update(format="other"),
            r"must be written by kdr .* got 'other'",
            id="format",
        ),
        pytest.param(
            lambda c: c.pop("categories"),
            r"must hold detector, categories.* got 'categories'",
            id="missing part",
        ),
        pytest.param(
            lambda c: c["detector"].update(neck=1),
            r"detector\.neck: no such setting",
            id="unknown setting",
        ),
        pytest.param(
            lambda c: c.update(weights_id="file-0"),
            r"student\.pt: must be the weights that .* describes",
            id="pair",
        ),
        pytest.param(
            lambda c: c["categories"].append("x"),
            r"must fit the detector that its sidecar describes",
            id="classes",
        ),
    ],
)
def test_a_sidecar_that_does_not_fit_is_refused(path, change, message):
    edited(path, change)
    with pytest.raises(WeightsError, match=message):
        open_student(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "must be readable JSON"), ("[]", "must be a JSON object, got list")],
)
def test_a_damaged_sidecar_is_refused(path, text, message):
    path.with_suffix(".json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        open_student(path)
