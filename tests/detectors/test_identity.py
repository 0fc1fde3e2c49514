import subprocess
import sys

import pytest
import torchvision
from torchvision.models import get_weight

from kdr.detectors.identity import BACKBONE_ENUMS, DETECTOR_ENUMS, content_id
from kdr.errors import WeightsError


@pytest.mark.parametrize("name", DETECTOR_ENUMS + BACKBONE_ENUMS)
def test_every_name_is_one_of_torchvisions_and_its_own_identity(name):
    assert repr(get_weight(name)) == name
    assert content_id(name) == name


def test_no_weights_of_our_backbones_and_detectors_are_left_out():
    resnets = ("ResNet18", "ResNet34", "ResNet50", "ResNet101", "ResNet152")
    wider = (
        "ResNeXt50_32X4D",
        "ResNeXt101_32X8D",
        "ResNeXt101_64X4D",
        "Wide_ResNet50_2",
        "Wide_ResNet101_2",
    )
    classifiers = (*resnets, *wider, "MobileNet_V3_Small", "MobileNet_V3_Large")
    detectors = (
        "RetinaNet_ResNet50_FPN",
        "RetinaNet_ResNet50_FPN_V2",
        "FCOS_ResNet50_FPN",
        "FasterRCNN_ResNet50_FPN",
    )
    assert {
        repr(w) for name in classifiers for w in getattr(torchvision.models, f"{name}_Weights")
    } == set(BACKBONE_ENUMS)
    assert {
        repr(w)
        for name in detectors
        for w in getattr(torchvision.models.detection, f"{name}_Weights")
    } == set(DETECTOR_ENUMS)


def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path):
    first, second, third = tmp_path / "a.pt", tmp_path / "b.pt", tmp_path / "c.pt"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    third.write_bytes(b"weighty")
    assert content_id(str(first)) == content_id(str(second)) != content_id(str(third))
    assert content_id(str(first)).startswith("file-")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("RetinaNet_ResNet50_FPN_Weights.COCO_V2", "RetinaNet_ResNet50_FPN_Weights.COCO_V1"),
        ("Resnet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"),
        ("ResNet50_Weights.DEFAULT", "ResNet50_Weights.IMAGENET1K_V"),
    ],
)
def test_an_unknown_enum_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(WeightsError, match=f"^{name}: no such weights.* Nearest: .*{nearest}"):
        content_id(name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(
        WeightsError, match=r"gone\.pt: must be a weights file .* got nothing there"
    ):
        content_id(str(tmp_path / "gone.pt"))
    with pytest.raises(WeightsError, match=r"must be a weights file, got a folder"):
        content_id(str(tmp_path))


def test_identities_are_found_without_torch():
    code = (
        "import sys, kdr.detectors.identity; assert not {'torch', 'torchvision', 'ray'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
