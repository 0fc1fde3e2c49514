"""Heads of other libraries' RetinaNets, compared with scores and boxes computed from the files' own
keys; and heads that are not loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig
from kdr.detectors import dense
from kdr.detectors.build import build_detector
from kdr.detectors.detector import Detector
from kdr.detectors.weights import LoadReport, inherit, load_configured_weights
from tests.detectors.conftest import ForeignNetwork, NetworkBuilder

pytestmark = pytest.mark.slow  # each test is quick, all of them together are not

CATEGORIES = ("circle", "square", "star")
SIZES = tuple(4 * 2 ** (third / 3) for third in range(3))  # in strides
RATIOS = (0.5, 1.0, 2.0)  # height / width
HEADS = {
    "mmdetection": (
        "bbox_head.cls_convs.{}.conv",
        "bbox_head.reg_convs.{}.conv",
        "bbox_head.retina_cls",
        "bbox_head.retina_reg",
    ),
    "detectron2": (
        "head.cls_subnet.{}",
        "head.bbox_subnet.{}",
        "head.cls_score",
        "head.bbox_pred",
    ),
}


def add_head(network: ForeignNetwork, layout: str, num_classes: int = 3) -> None:
    """Adds a RetinaNet's head with random weights."""
    cls, reg, logits, deltas = HEADS[layout]
    for number in range(4):
        for branch in (cls, reg):
            # detectron2 also numbers the ReLUs
            network.conv(
                branch.format(2 * number if layout == "detectron2" else number),
                32,
                32,
                3,
                bias=True,
            )
    network.conv(logits, 9 * num_classes, 32, 3, bias=True)
    network.conv(deltas, 9 * 4, 32, 3, bias=True)
    network.state[f"{deltas}.weight"] /= 20


def scores_and_boxes(
    network: ForeignNetwork, layout: str, feature: Tensor, stride: int
) -> dict[tuple[int, int, int, int], tuple[Tensor, Tensor]]:
    """Returns (row, column, size, ratio) -> class logits and xyxy box of the first image, decoded
    as in the library."""
    cls, reg, logits, deltas = HEADS[layout]
    of_cls = of_reg = feature
    for number in range(4):
        step = 2 * number if layout == "detectron2" else number
        of_cls, of_reg = (
            network.convolved(x, name.format(step), 1, 1).relu()
            for x, name in ((of_cls, cls), (of_reg, reg))
        )
    of_cls, of_reg = (
        network.convolved(of_cls, logits, 1, 1)[0],
        network.convolved(of_reg, deltas, 1, 1)[0],
    )
    found = {}
    for size in range(3):
        for ratio in range(3):
            number = 3 * size + ratio if layout == "detectron2" else 3 * ratio + size
            height, width = (SIZES[size] * stride * RATIOS[ratio] ** power for power in (0.5, -0.5))
            for row in range(of_cls.shape[1]):
                for column in range(of_cls.shape[2]):
                    dx, dy, dw, dh = of_reg.view(9, 4, *of_reg.shape[1:])[
                        number, :, row, column
                    ].tolist()
                    center = torch.tensor(
                        [column * stride + dx * width, row * stride + dy * height]
                    )
                    half = torch.tensor([dw, dh]).exp() * torch.tensor([width, height]) / 2
                    own = of_cls.view(9, -1, *of_cls.shape[1:])[number, :, row, column]
                    found[row, column, size, ratio] = (
                        own,
                        torch.cat([center - half, center + half]),
                    )
    return found


def teacher_of(
    path: Path,
    network: ForeignNetwork,
    layout: str,
    *,
    detector: str = "retinanet",
    names: tuple[str, ...] | None = CATEGORIES,
    data: tuple[str, ...] = CATEGORIES,
) -> tuple[Detector, LoadReport]:
    """Returns the teacher from a file and the report of its loading; mmdetection's file has the
    class names `names`."""
    content = {
        "state_dict": network.state,
        "meta": {} if names is None else {"dataset_meta": {"classes": names}},
    }
    torch.save(content, path)
    settings = {
        "detector": detector,
        "backbone": "resnet18",
        "fpn_channels": 32,
        "weights_layout": layout,
    }
    teacher = build_detector(DetectorConfig(weights=str(path), **settings), data, seed=0)
    (report,) = load_configured_weights(teacher)
    return teacher.eval(), report


@pytest.mark.parametrize("layout", ["mmdetection", "detectron2"])
def test_a_retinanets_boxes_and_scores_are_those_of_its_own_library(
    tmp_path: Path, foreign_network: NetworkBuilder, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    # detectron2's files have no class names; this is about the order of the class layer's outputs
    monkeypatch.setattr("kdr.detectors.weights.categories_of", lambda *_: CATEGORIES)
    network = foreign_network(layout)
    add_head(network, layout)
    teacher, report = teacher_of(tmp_path / "teacher.pth", network, layout)
    assert (report.head, report.unexpected, teacher.unloaded_head) == (1.0, (), frozenset())
    draw = torch.Generator().manual_seed(1)
    features = [torch.randn(1, 32, side, side, generator=draw) for side in (8, 4, 2, 1, 1)]
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    with torch.no_grad():
        outputs = dense.head_outputs(teacher.model, features, images)
    first = {
        name: output[0, : 8 * 8 * 9].reshape(8, 8, 3, 3, -1) for name, output in outputs.items()
    }
    anchors = dense.anchors(teacher.model, features, images)[0][: 8 * 8 * 9]
    model: Any = teacher.model
    boxes = model.box_coder.decode_single(first["bbox_regression"].flatten(0, 3), anchors).view(
        8, 8, 3, 3, 4
    )
    for (row, column, size, ratio), (logits, box) in scores_and_boxes(
        network, layout, features[0].double(), 8
    ).items():
        place = (row, column, ratio, size)  # torchvision has sizes within ratios
        torch.testing.assert_close(
            first["cls_logits"][place].double(), logits, rtol=1e-4, atol=1e-4
        )
        torch.testing.assert_close(boxes[place], box.float(), rtol=1e-4, atol=1e-3)


def test_class_names_in_a_retinanets_file_become_the_teachers(
    tmp_path: Path, foreign_network: NetworkBuilder
) -> None:
    network = foreign_network("mmdetection")
    add_head(network, "mmdetection", num_classes=2)
    teacher, report = teacher_of(
        tmp_path / "teacher.pth", network, "mmdetection", names=("square", "dot")
    )
    assert teacher.categories == ("square", "dot")
    assert (report.head, teacher.unloaded_head) == (1.0, frozenset())


@pytest.mark.parametrize("layout", ["mmdetection", "detectron2"])
def test_a_class_layer_without_class_names_is_not_loaded(
    tmp_path: Path, foreign_network: NetworkBuilder, layout: str
) -> None:
    network = foreign_network(layout)
    add_head(network, layout)
    teacher, report = teacher_of(tmp_path / "teacher.pth", network, layout, names=None)
    names = {f"head.classification_head.cls_logits.{part}" for part in ("weight", "bias")}
    assert teacher.categories == CATEGORIES
    assert set(report.mismatched) == teacher.unloaded_head == names
    assert 0.8 < report.head < 1


def test_a_head_that_fits_only_in_part_is_not_loaded(
    tmp_path: Path, foreign_network: NetworkBuilder
) -> None:
    network = foreign_network("mmdetection")
    add_head(network, "mmdetection")
    for branch in ("cls", "reg"):
        # a normalisation replaces the bias
        del network.state[f"bbox_head.{branch}_convs.0.conv.bias"]
        network.state[f"bbox_head.{branch}_convs.0.gn.weight"] = torch.ones(32)
    teacher, report = teacher_of(tmp_path / "teacher.pth", network, "mmdetection")
    assert (report.backbone, report.neck, report.head) == (1.0, 1.0, 0.0)
    assert len(report.unexpected) == 20
    assert len(teacher.unloaded_head) == 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "detector"), [("mmdetection", "fcos"), ("detectron2", "faster_rcnn")]
)
def test_inherit_copies_the_neck_and_nothing_of_a_head_that_was_not_loaded(
    tmp_path: Path, foreign_network: NetworkBuilder, layout: str, detector: str
) -> None:
    network = foreign_network(layout, p6_from="P5", finest=2 if detector == "faster_rcnn" else 3)
    teacher, report = teacher_of(tmp_path / "teacher.pth", network, layout, detector=detector)
    assert report.head == 0.0
    config = DetectorConfig(detector=detector, backbone="resnet18", fpn_channels=32)
    student, initial = (build_detector(config, CATEGORIES, seed=1) for _ in range(2))
    inherited = inherit(student, teacher)
    assert (inherited.neck, inherited.head) == (1.0, 0.0)
    assert set(inherited.missing) == teacher.unloaded_head
    source, before = teacher.model.state_dict(), initial.model.state_dict()
    for key, value in student.model.state_dict().items():
        assert torch.equal(
            value, source[key] if key.startswith("backbone.fpn.") else before[key]
        ), key
