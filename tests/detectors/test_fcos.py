"""FCOS with and without its tricks, compared with a computation cell by cell in float64."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig
from kdr.config.problems import validated
from kdr.detectors import dense
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.detector import Detector
from kdr.errors import ConfigError
from tests.detectors.conftest import BatchBuilder, backward

STRIDES = (8, 16, 32, 64, 128)
SIZE = (128, 160)
NUM_CLASSES = 3
BOXES = torch.tensor(
    [[10.0, 12.0, 44.0, 60.0], [20.0, 30.0, 150.0, 120.0], [70.0, 8.0, 90.0, 30.0]],
    dtype=torch.float64,
)
LABELS = torch.tensor([2, 0, 1])
OPTIONS = [
    {"center_sampling": center, "norm_on_bbox": norm, "box_loss": loss}
    for center, norm, loss in itertools.product((True, False), (True, False), ("giou", "iou"))
]


def cells() -> list[tuple[int, float, float]]:
    """Returns level and middle (x, y) of every cell: at multiples of the stride, as torchvision
    places its anchors."""
    found: list[tuple[int, float, float]] = []
    for level, stride in enumerate(STRIDES):
        rows, columns = -(-SIZE[0] // stride), -(-SIZE[1] // stride)
        # torchvision derives the stride of its anchors from the size of the map
        y_step, x_step = SIZE[0] // rows, SIZE[1] // columns
        found += [
            (level, column * x_step, row * y_step)
            for row in range(rows)
            for column in range(columns)
        ]
    return found


def assigned(level: int, x: float, y: float, *, center_sampling: bool) -> int:
    """Returns the smallest box that contains the cell within the level's range of distances, or
    -1."""
    stride = STRIDES[level]
    low = 0 if level == 0 else 4 * stride
    high = math.inf if level == len(STRIDES) - 1 else 8 * stride
    best, best_area = -1, math.inf
    for index, (x1, y1, x2, y2) in enumerate(BOXES.tolist()):
        distances = (x - x1, y - y1, x2 - x, y2 - y)
        middle = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
        if (
            min(distances) <= 0
            or not low < max(distances) < high
            or (center_sampling and not middle < 1.5 * stride)
        ):
            continue
        if (x2 - x1) * (y2 - y1) < best_area:
            best, best_area = index, (x2 - x1) * (y2 - y1)
    return best


def box_loss(box: list[float], truth: list[float], kind: str) -> float:
    shared = max(0, min(box[2], truth[2]) - max(box[0], truth[0])) * max(
        0, min(box[3], truth[3]) - max(box[1], truth[1])
    )
    union = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, truth)) - shared
    iou = shared / union
    if kind == "iou":
        return -math.log(max(iou, 1e-6))
    hull = (max(box[2], truth[2]) - min(box[0], truth[0])) * (
        max(box[3], truth[3]) - min(box[1], truth[1])
    )
    return 1 - iou + (hull - union) / hull


def built(options: dict[str, Any]) -> Detector:
    config = DetectorConfig(
        detector="fcos", backbone="mobilenet_v3_small", fpn_channels=64, **options
    )
    return build_detector(config, ("a", "b", "c"), seed=0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_losses_are_those_of_a_computation_cell_by_cell(options: dict[str, Any]) -> None:
    model: Any = built(options).model
    every = cells()
    draw = torch.Generator().manual_seed(0)
    outputs = {
        "cls_logits": torch.randn(1, len(every), NUM_CLASSES, generator=draw, dtype=torch.float64),
        "bbox_regression": (
            torch.rand(1, len(every), 4, generator=draw, dtype=torch.float64) * 3 + 0.1
        ),
        "bbox_ctrness": torch.randn(1, len(every), 1, generator=draw, dtype=torch.float64),
    }
    images = ImageList(torch.zeros(1, 3, *SIZE, dtype=torch.float64), [SIZE])
    features = [
        torch.zeros(1, 32, -(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in STRIDES
    ]
    anchors = dense.anchors(model, features, images)
    losses = model.compute_loss(
        [{"boxes": BOXES, "labels": LABELS}], outputs, anchors, dense.cells_per_level(features)
    )

    targets = torch.zeros(len(every), NUM_CLASSES, dtype=torch.float64)
    of_boxes, of_centers = [], []
    for cell, (level, x, y) in enumerate(every):
        index = assigned(level, x, y, center_sampling=options["center_sampling"])
        if index < 0:
            continue
        targets[cell, LABELS[index]] = 1
        unit = STRIDES[level] if options["norm_on_bbox"] else 1
        left, top, right, bottom = (
            value * unit for value in outputs["bbox_regression"][0, cell].tolist()
        )
        x1, y1, x2, y2 = truth = BOXES[index].tolist()
        of_boxes.append(
            box_loss([x - left, y - top, x + right, y + bottom], truth, options["box_loss"])
        )
        across, along = sorted((x - x1, x2 - x)), sorted((y - y1, y2 - y))
        center = torch.tensor(
            math.sqrt(across[0] / across[1] * along[0] / along[1]), dtype=torch.float64
        )
        of_centers.append(
            F.binary_cross_entropy_with_logits(outputs["bbox_ctrness"][0, cell, 0], center).item()
        )
    assert len(of_boxes) > 5
    probability = outputs["cls_logits"][0].sigmoid()
    right_probability = torch.where(targets == 1, probability, 1 - probability)
    alpha = torch.where(targets == 1, 0.25, 0.75)
    focal = -(alpha * (1 - right_probability) ** 2 * right_probability.log()).sum().item()
    assert losses["classification"].item() == pytest.approx(focal / len(of_boxes), rel=1e-6)
    assert losses["bbox_regression"].item() == pytest.approx(
        sum(of_boxes) / len(of_boxes), rel=1e-5
    )
    assert losses["bbox_ctrness"].item() == pytest.approx(sum(of_centers) / len(of_boxes), rel=1e-6)


def test_distances_in_pixels_are_the_exponential_of_the_scaled_output() -> None:
    head, torchvisions = (
        built(options).model.get_submodule("head.regression_head")
        for options in ({"norm_on_bbox": False}, {})
    )
    scales = head.get_parameter("scales")
    with torch.no_grad():
        scales.copy_(torch.tensor([1.0, 1.2, 1.4, 1.6, 1.8]))
    # so that their ReLU cuts nothing off
    torch.nn.init.constant_(head.get_parameter("bbox_reg.bias"), 0.7)
    torchvisions.load_state_dict(
        {name: value for name, value in head.state_dict().items() if name != "scales"}
    )
    draw = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 64, side, side, generator=draw) for side in (8, 4, 2, 1, 1)]
    distances, centerness = head(features)
    linear, expected_centerness = torchvisions(features)
    assert (linear > 0).all()
    torch.testing.assert_close(centerness, expected_centerness)
    per_cell = torch.repeat_interleave(scales, torch.tensor([64, 16, 4, 1, 1]))[None, :, None]
    torch.testing.assert_close(distances, torch.exp(per_cell * linear), rtol=1e-5, atol=1e-6)


def test_boxes_are_in_pixels_with_either_unit_of_distances() -> None:
    for norm_on_bbox, unit in ((True, 8.0), (False, 1.0)):
        model: Any = built({"norm_on_bbox": norm_on_bbox}).model
        anchor = torch.tensor([[60.0, 60.0, 68.0, 68.0]])  # of stride 8, around (64, 64)
        found = model.box_coder.decode(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), anchor)
        assert found.tolist() == [[64 - unit, 64 - 2 * unit, 64 + 3 * unit, 64 + 4 * unit]]


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
def test_the_export_loads_strictly_and_trains_under_bfloat16(
    options: dict[str, Any], random_batch: BatchBuilder
) -> None:
    detector = built(options)
    torchvision_model(detector.config, NUM_CLASSES).load_state_dict(
        detector.model.state_dict(), strict=True
    )
    if options["norm_on_bbox"]:
        FCOS(detector.model.backbone, NUM_CLASSES).load_state_dict(
            detector.model.state_dict(), strict=True
        )
    batch = random_batch([(128, 128), (100, 128)], num_boxes=[2, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pixels = detector.pixels(batch.images, batch.image_sizes)
        losses = detector.losses(
            detector.features(pixels), pixels, batch.image_sizes, batch.boxes, batch.labels
        )
    assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
    backward(losses)
    assert all(parameter.grad is not None for parameter in detector.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"detector": "retinanet", "center_sampling": True},
            "center_sampling: retinanet has no such setting, got True. Leave it",
        ),
        (
            {"detector": "retinanet", "box_loss": "iou"},
            "box_loss: must be l1 or giou for retinanet, got iou. Leave it out",
        ),
        (
            {"detector": "fcos", "box_loss": "l1"},
            "box_loss: must be giou or iou for fcos, got l1. Leave it out",
        ),
        (
            {"detector": "faster_rcnn", "p6_from": "C5"},
            "p6_from: faster_rcnn has no such setting, got C5. Leave it out",
        ),
    ],
)
def test_a_setting_that_a_detector_does_not_have_is_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(DetectorConfig, settings)
