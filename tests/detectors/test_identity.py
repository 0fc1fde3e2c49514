import subprocess
import sys
from pathlib import Path

import pytest
import torchvision
from torchvision.models import get_weight

from kdr.detectors.identity import BACKBONE_ENUMS, DETECTOR_ENUMS, content_id
from kdr.errors import WeightsError


@pytest.mark.parametrize("name", DETECTOR_ENUMS + BACKBONE_ENUMS)
def test_every_name_is_torchvisions_and_its_own_identity(name: str) -> None:
    assert repr(get_weight(name)) == name
    assert content_id(name) == name


def test_all_weights_of_supported_backbones_and_detectors_are_listed() -> None:
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


def test_a_file_is_identified_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
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
def test_the_error_for_an_unknown_enum_has_the_closest_names(name: str, nearest: str) -> None:
    with pytest.raises(WeightsError, match=f"^{name}: neither a file .* names: .*{nearest}"):
        content_id(name)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.pt: no such weights file"):
        content_id(str(tmp_path / "gone.pt"))
    with pytest.raises(WeightsError, match=r"is not a weights file but a folder"):
        content_id(str(tmp_path))


def test_identities_need_no_torch() -> None:
    code = (
        "import sys, kdr.detectors.identity; assert not {'torch', 'torchvision', 'ray'} & "
        "set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
