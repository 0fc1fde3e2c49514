"""The contract of every detector, for all kinds, backbones and heads."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kdr.config.detector import ANCHORS_PER_CELL, FEATURE_STRIDES, DetectorConfig, level_names
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.detector import Detector
from tests.detectors.conftest import BatchBuilder, RandomBatch, ShowScores, backward

CATEGORIES = ("circle", "square", "star")

CONFIGS = [
    DetectorConfig(detector=kind, backbone=backbone, fpn_channels=channels, head_norm=head_norm)
    for backbone in ("resnet18", "mobilenet_v3_small")
    for kind, channels, head_norm in (
        ("retinanet", 32, None),
        ("retinanet", 64, "group"),
        ("fcos", 64, None),
        ("faster_rcnn", 32, None),
    )
] + [DetectorConfig(detector="faster_rcnn", backbone="resnext50_32x4d", fpn_channels=32)]


@pytest.fixture(
    scope="module",
    params=CONFIGS,
    ids=lambda config: f"{config.detector}-{config.backbone}-{config.head_norm}",
)
def built(request: pytest.FixtureRequest) -> Detector:
    config: DetectorConfig = request.param
    return build_detector(config, CATEGORIES, seed=3)


@pytest.fixture
def detector(built: Detector) -> Detector:
    return copy.deepcopy(built)


def losses_of(detector: Detector, batch: RandomBatch) -> dict[str, Tensor]:
    torch.manual_seed(0)  # Faster R-CNN draws samples
    pixels = detector.pixels(batch.images, batch.image_sizes)
    return detector.losses(
        detector.features(pixels), pixels, batch.image_sizes, batch.boxes, batch.labels
    )


def detections_of(detector: Detector, batch: RandomBatch) -> list[dict[str, Tensor]]:
    pixels = detector.pixels(batch.images, batch.image_sizes)
    return detector.detections(detector.features(pixels), pixels, batch.image_sizes)


@pytest.mark.slow
def test_gradients_reach_every_parameter(detector: Detector, random_batch: BatchBuilder) -> None:
    batch = random_batch([(96, 96), (64, 90)], num_boxes=[4, 2])
    # This includes Faster R-CNN's second stage, because the true boxes are among its proposals.
    # Without boxes, the box layers of both stages have gradients of zeros, not None: see the next
    # test.
    backward(losses_of(detector, batch))
    starved = [
        name
        for name, parameter in detector.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    assert starved == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image_sizes", "num_boxes"),
    [
        pytest.param([(65, 49)], [2], id="one image of odd sides"),
        pytest.param([(64, 64), (64, 64)], [0, 0], id="no boxes at all"),
        pytest.param([(64, 64), (64, 64)], [0, 3], id="one image without boxes"),
        pytest.param([(33, 96), (96, 33)], [1, 2], id="landscape and portrait"),
    ],
)
def test_every_batch_gives_finite_losses_gradients_and_detections(
    detector: Detector,
    random_batch: BatchBuilder,
    shows_scores_from: ShowScores,
    image_sizes: list[tuple[int, int]],
    num_boxes: list[int],
) -> None:
    batch = random_batch(image_sizes, num_boxes=num_boxes)
    losses = losses_of(detector, batch)
    backward(losses)
    assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in detector.parameters()
    )
    detector.eval()
    shows_scores_from(detector.model, 0.0)
    for found, (height, width) in zip(detections_of(detector, batch), image_sizes, strict=True):
        assert len(found["boxes"]) == len(found["scores"]) == len(found["labels"]) > 0
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert set(found["labels"].tolist()) <= {0, 1, 2}


def test_the_first_and_the_last_label_are_classes_and_not_background(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(64, 64)], num_boxes=[1])
    pixels = detector.pixels(batch.images, batch.image_sizes)
    features = detector.features(pixels)
    parameters = dict(detector.model.named_parameters())
    second_stage = "roi_heads.box_predictor.cls_score.bias"
    bias = parameters.get(second_stage, parameters.get("head.classification_head.cls_logits.bias"))
    pulls = []
    for label in (0, len(CATEGORIES) - 1):
        torch.manual_seed(0)  # Faster R-CNN draws samples
        losses = detector.losses(
            features, pixels, batch.image_sizes, batch.boxes, [torch.tensor([label])]
        )
        loss = losses.get("loss_classifier", losses.get("classification"))
        assert bias is not None
        assert loss is not None
        (gradient,) = torch.autograd.grad(loss, bias, retain_graph=True)
        # Faster R-CNN's first class is the background
        of_classes = gradient[1:] if second_stage in parameters else gradient
        pulls.append(-of_classes.view(-1, len(CATEGORIES)).sum(0))
    first, last = pulls
    # each label pulls its own class up more than the other label does, and both change the third
    # class equally
    assert first[0] > last[0]
    assert first[-1] < last[-1]
    torch.testing.assert_close(first[1], last[1])


def test_levels_are_where_the_settings_say(built: Detector) -> None:
    assert built.strides == FEATURE_STRIDES[built.config.detector]
    assert built.level_names == level_names(built.config.detector)
    assert built.channels == (built.config.fpn_channels,) * len(built.strides)


def test_features_have_the_size_of_their_stride(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(128, 96)], num_boxes=[1])
    features = detector.features(detector.pixels(batch.images, batch.image_sizes))
    expected = [
        (1, C, -(-128 // s), -(-96 // s))
        for C, s in zip(detector.channels, detector.strides, strict=True)
    ]
    assert [tuple(level.shape) for level in features] == expected


def test_the_class_logits_of_the_losses_are_the_outputs_of_the_convolution(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(64, 96)], num_boxes=[2])
    pixels = detector.pixels(batch.images, batch.image_sizes)
    features = detector.features(pixels)
    _, logits = detector.losses_and_class_logits(
        features, pixels, batch.image_sizes, batch.boxes, batch.labels
    )
    num_anchors = ANCHORS_PER_CELL.get(detector.config.detector)
    assert (logits is None) == (num_anchors is None)
    if logits is None:
        return
    head: Any = detector.model.get_submodule("head.classification_head")
    for level, alone, found in zip(features, detector.class_logits(features), logits, strict=True):
        expected = head.cls_logits(head.conv(level)).view(
            1, num_anchors, len(CATEGORIES), *level.shape[-2:]
        )
        assert torch.equal(found, expected)
        assert torch.equal(alone, expected)


def test_measuring_the_levels_does_not_change_batch_norm(built: Detector) -> None:
    buffers = dict(built.model.named_buffers())
    assert all(
        (value == 0).all()
        for name, value in buffers.items()
        if name.endswith(("running_mean", "num_batches_tracked"))
    )
    assert all(
        (value == 1).all() for name, value in buffers.items() if name.endswith("running_var")
    )
    assert all(module.training for module in built.modules())


def test_equal_seeds_give_equal_weights(built: Detector) -> None:
    again = build_detector(built.config, CATEGORIES, seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in built.state_dict().items())


def test_the_state_dict_is_torchvisions_and_loads_strictly(built: Detector) -> None:
    plain = torchvision_model(built.config, len(CATEGORIES))
    assert type(plain).__module__.startswith("torchvision.models.detection")
    plain.load_state_dict(built.model.state_dict(), strict=True)


@pytest.mark.slow
def test_a_deep_copy_gives_the_same_losses_and_shares_nothing(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(64, 64)], num_boxes=[2])
    twin = copy.deepcopy(detector)
    assert all(
        torch.equal(loss, losses_of(twin, batch)[name])
        for name, loss in losses_of(detector, batch).items()
    )
    assert not {p.data_ptr() for p in detector.parameters()} & {
        p.data_ptr() for p in twin.parameters()
    }


def test_switching_to_evaluation_and_back_does_not_change_losses(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(64, 64)], num_boxes=[2])
    before = losses_of(detector, batch)
    detector.eval()
    in_between = detections_of(detector, batch)
    assert all(
        torch.equal(a[key], b[key])
        for a, b in zip(in_between, detections_of(detector, batch), strict=True)
        for key in a
    )
    detector.train()
    assert all(torch.equal(loss, before[name]) for name, loss in losses_of(detector, batch).items())
