"""Resizes and augments images with their boxes; draws are addressed by image and epoch.

torchvision's detectors resize on their own (torchvision 0.29: a random size in training, the last
one in evaluation), so a teacher in evaluation mode would see images of a different size from its
student's. Images are therefore resized here, once for both, and the detectors' own resizing is not
used.
"""

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from kdr.config.data import Augment, Resize
from kdr.randomness import address

Sample = tuple[Tensor, Tensor, Tensor]
"""Image (3, H, W) uint8, boxes (M, 4) float32 xyxy in pixels of that image, labels (M,) int64."""


class EvalTransform:
    """Resizes an image, using the last of several short sides.

    Args:
        resize: the target size; None keeps the image's own.
    """

    def __init__(self, resize: Resize | None) -> None:
        self._resize = resize

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, **_address: int) -> Sample:
        """Returns the resized sample. Boxes that have no area left are dropped, with their
        labels.
        """
        resized, canvas = _resized(image, _canvas(boxes, image), self._resize, draw=1.0)
        return _without_empty_boxes(resized, canvas, labels)


class TrainTransform:
    """Resizes an image, and flips it and changes its colours at random.

    The draws depend only on (seed, epoch, image id). Each setting has its own draw, so enabling one
    does not change the others.

    Args:
        resize: the target size; one of several short sides is drawn per image and epoch; None keeps
            the image's own.
        augment: probability of a flip, strength of colour changes.
        seed: the trial's seed.
    """

    def __init__(self, resize: Resize | None, augment: Augment, seed: int) -> None:
        self._resize, self._augment, self._seed = resize, augment, seed

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, *, epoch: int, image_id: int
    ) -> Sample:
        """Returns the augmented sample of one image in one epoch.

        Boxes that have no area left are dropped, with their labels.
        """
        generator = torch.Generator().manual_seed(address(self._seed, "augment", epoch, image_id))
        # always five draws, even for settings that are off: this keeps arms paired
        scale, flip, *colours = torch.rand(5, generator=generator).tolist()
        image, canvas = _resized(image, _canvas(boxes, image), self._resize, draw=scale)
        if flip < self._augment.flip:
            image, canvas = F.horizontal_flip(image), F.horizontal_flip(canvas)
        if self._augment.colour_jitter > 0:
            image = _jittered(
                image, [1 + self._augment.colour_jitter * (2 * colour - 1) for colour in colours]
            )
        return _without_empty_boxes(image, canvas, labels)


def resized_size(height: int, width: int, resize: Resize, *, draw: float = 1.0) -> tuple[int, int]:
    """Returns height and width after resizing, in pixels; the aspect ratio is kept up to rounding.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        resize: the setting.
        draw: in [0, 1], which of several short sides to use; 1 is the last.
    """
    short, long = min(height, width), max(height, width)
    if resize.square_px is not None:
        scale = resize.square_px / long
    else:
        assert resize.short_side_px is not None
        sides = resize.short_side_px
        scale = min(
            sides[min(int(draw * len(sides)), len(sides) - 1)] / short, resize.long_side_px / long
        )
    return max(1, round(height * scale)), max(1, round(width * scale))


def _canvas(boxes: Tensor, image: Tensor) -> tv_tensors.BoundingBoxes:
    height, width = image.shape[-2:]
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))  # type: ignore[call-overload,unused-ignore]


def _resized(
    image: Tensor, boxes: tv_tensors.BoundingBoxes, resize: Resize | None, *, draw: float
) -> tuple[Tensor, tv_tensors.BoundingBoxes]:
    if resize is None:
        return image, boxes
    height, width = image.shape[-2:]
    size = resized_size(height, width, resize, draw=draw)
    if size == (height, width):
        return image, boxes
    image = F.resize(image, list(size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return image, F.resize(boxes, list(size))


def _jittered(image: Tensor, factors: list[float]) -> Tensor:
    """Multiplies brightness, contrast and saturation by one factor each, in this order."""
    brightness, contrast, saturation = factors
    image = F.adjust_brightness(image, brightness)
    image = F.adjust_contrast(image, contrast)
    jittered: Tensor = F.adjust_saturation(image, saturation)
    return jittered


def _without_empty_boxes(image: Tensor, boxes: tv_tensors.BoundingBoxes, labels: Tensor) -> Sample:
    inside = F.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    # the regression target of a box without area would be log 0
    kept = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    return image.as_subclass(Tensor), inside[kept], labels[kept]
