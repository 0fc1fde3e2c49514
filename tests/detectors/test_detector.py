from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig
from kdr.detectors import dense
from kdr.detectors.build import build_detector, torchvision_model
from kdr.detectors.detector import Detector
from kdr.errors import ShapeMismatchError
from tests.detectors.conftest import BatchBuilder, RandomBatch, ShowScores, backward

CATEGORIES = ("circle", "square", "star")
# below the prior of an untrained head, so that there are detections to compare
LOW_SCORE = 0.005


@pytest.fixture(params=["retinanet", "fcos", "faster_rcnn"])
def detector(request: pytest.FixtureRequest, shows_scores_from: ShowScores) -> Detector:
    detector = build_detector(
        DetectorConfig(detector=request.param, backbone="mobilenet_v3_small", fpn_channels=64),
        CATEGORIES,
        seed=1,
    )
    shows_scores_from(detector.model, LOW_SCORE)
    return detector


@pytest.fixture
def torchvisions(detector: Detector, shows_scores_from: ShowScores) -> nn.Module:
    model = torchvision_model(detector.config, len(CATEGORIES), _skip_resize=True)
    shows_scores_from(model, LOW_SCORE)
    model.load_state_dict(detector.model.state_dict())
    return model


@pytest.fixture
def batch(random_batch: BatchBuilder) -> RandomBatch:
    return random_batch([(128, 101), (70, 128), (64, 64)], num_boxes=[3, 0, 2])


def anchors_of(model: Any, features: list[Tensor], images: ImageList) -> torch.Tensor:
    if not hasattr(model, "rpn"):
        return dense.anchors(model, features, images)[0]
    first: Tensor = model.rpn.anchor_generator(images, features)[0]
    return first


def test_losses_gradients_and_statistics_are_torchvisions_bit_for_bit(
    detector: Detector, torchvisions: Any, batch: RandomBatch
) -> None:
    pixels = detector.pixels(batch.images, batch.image_sizes)
    torch.manual_seed(0)  # Faster R-CNN draws samples
    losses = detector.losses(
        detector.features(pixels), pixels, batch.image_sizes, batch.boxes, batch.labels
    )
    torch.manual_seed(0)
    images, targets = batch.as_torchvision_takes_it()
    first = detector.config.detector == "faster_rcnn"  # its class 0 is the background
    expected = torchvisions(
        images, [{**target, "labels": target["labels"] + first} for target in targets]
    )
    assert {name: loss.item() for name, loss in losses.items()} == {
        name: loss.item() for name, loss in expected.items()
    }
    backward(losses)
    backward(expected)
    gradients = {name: value.grad for name, value in detector.model.named_parameters()}
    for name, value in torchvisions.named_parameters():
        ours = gradients[name]
        assert ours is not None
        assert torch.equal(ours, value.grad), name
    buffers = dict(detector.model.named_buffers())
    assert all(torch.equal(buffers[name], value) for name, value in torchvisions.named_buffers())


def test_detections_are_torchvisions_bit_for_bit(
    detector: Detector, torchvisions: Any, batch: RandomBatch
) -> None:
    detector.eval()
    torchvisions.eval()
    # torchvision (0.29) ignores _skip_resize in evaluation
    torchvisions.transform.train()
    pixels = detector.pixels(batch.images, batch.image_sizes)
    found = detector.detections(detector.features(pixels), pixels, batch.image_sizes)
    expected = torchvisions(batch.as_torchvision_takes_it()[0])
    assert all(0 < len(image["boxes"]) <= 300 for image in expected)
    if detector.config.detector == "faster_rcnn":
        expected = [{**image, "labels": image["labels"] - 1} for image in expected]
    assert all(
        torch.equal(image[key], other[key])
        for image, other in zip(found, expected, strict=True)
        for key in other
    )


def test_pixels_are_normalised_and_padded_with_zeros(
    detector: Detector, torchvisions: Any, batch: RandomBatch
) -> None:
    pixels = detector.pixels(batch.images, batch.image_sizes)
    expected, _ = torchvisions.transform(batch.as_torchvision_takes_it()[0])
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels, expected.tensors)
    assert not pixels[2, :, 64:].any()
    assert not pixels[2, :, :, 64:].any()


def test_pixels_keeps_the_images_and_their_memory_format(
    detector: Detector, batch: RandomBatch
) -> None:
    images = batch.images.to(memory_format=torch.channels_last)
    before = images.clone()
    assert detector.pixels(images, batch.image_sizes).is_contiguous(
        memory_format=torch.channels_last
    )
    assert torch.equal(images, before)


def test_pixels_and_features_read_no_value_back_from_the_device(
    detector: Detector, batch: RandomBatch
) -> None:
    detector.to("meta")  # tensors without values: reading one back is an error
    features = detector.features(detector.pixels(batch.images.to("meta"), batch.image_sizes))
    assert {level.device.type for level in features} == {"meta"}


def test_a_batch_that_torchvision_would_pad_is_refused(detector: Detector) -> None:
    with pytest.raises(ShapeMismatchError, match=r"multiples of 32, got 64 x 65\. Pad"):
        detector.pixels(torch.zeros(1, 3, 64, 65, dtype=torch.uint8), [(64, 65)])


def test_under_bfloat16_anchors_stay_exact_and_losses_stay_near(
    detector: Detector, random_batch: BatchBuilder
) -> None:
    batch = random_batch([(96, 320)], num_boxes=[3])
    # batch statistics of three cells would hide the rounding errors
    detector.model.get_submodule("backbone").eval()
    pixels = detector.pixels(batch.images, batch.image_sizes)
    torch.manual_seed(0)
    exact = detector.losses(
        detector.features(pixels), pixels, batch.image_sizes, batch.boxes, batch.labels
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = detector.features(pixels)
        torch.manual_seed(0)
        rounded = detector.losses(features, pixels, batch.image_sizes, batch.boxes, batch.labels)
        images = ImageList(pixels, batch.image_sizes)
        anchors = anchors_of(detector.model, features, images)
    assert features[0].dtype == torch.bfloat16
    assert {loss.dtype for loss in rounded.values()} == {torch.float32}
    # the second stage samples from its proposals, which differ
    for name in exact.keys() - {"loss_classifier", "loss_box_reg"}:
        loss = exact[name]
        torch.testing.assert_close(rounded[name], loss, rtol=0.02, atol=1e-3)
    assert torch.equal(
        anchors, anchors_of(detector.model, [level.float() for level in features], images)
    )
    centers = (anchors[:, 0] + anchors[:, 2]) / 2
    # the last cell of the finest level; bfloat16 would round odd positions
    assert centers.max() == 320 - detector.strides[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_pixels_and_features_do_not_wait_for_the_gpu(
    detector: Detector, batch: RandomBatch
) -> None:
    detector.cuda()
    images = batch.images.cuda()
    detector.features(detector.pixels(images, batch.image_sizes))
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        detector.features(detector.pixels(images, batch.image_sizes))
    finally:
        torch.cuda.set_sync_debug_mode(mode)
