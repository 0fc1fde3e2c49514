"""Resizing and augmenting an image with its boxes. Draws are addressed by (seed, epoch, image),
never from a global generator.
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
    """Resizes; with several short sides to the last.

    Args:
        resize: the size to bring images to; None keeps their size.
    """

    def __init__(self, resize: Resize | None) -> None:
        self._resize = resize

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, **_address: int) -> Sample:
        """The resized sample, the same in every epoch. Boxes of no area are dropped with their
        labels.
        """
        return _dropped(*_resized(image, _canvas(boxes, image), self._resize, draw=1.0), labels)


class TrainTransform:
    """Resizes, flips and changes colours at random.

    A sample's draws depend on (seed, epoch, image id) alone. Each setting has a draw of its own, so
    that switching one on moves no other.

    Args:
        resize: the size to bring images to; with several short sides one is drawn per image and
            epoch; None keeps their size.
        augment: probability of a flip, strength of colour changes.
        seed: the trial's seed.
    """

    def __init__(self, resize: Resize | None, augment: Augment, seed: int) -> None:
        self._resize, self._augment, self._seed = resize, augment, seed

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, *, epoch: int, image_id: int
    ) -> Sample:
        """The augmented sample of one image in one epoch. Boxes of no area are dropped with their
        labels.
        """
        generator = torch.Generator().manual_seed(address(self._seed, "augment", epoch, image_id))
        scale, flip, *colours = torch.rand(5, generator=generator).tolist()
        image, canvas = _resized(image, _canvas(boxes, image), self._resize, draw=scale)
        if flip < self._augment.flip:
            image, canvas = F.horizontal_flip(image), F.horizontal_flip(canvas)
        if self._augment.colour_jitter > 0:
            image = _jittered(
                image, [1 + self._augment.colour_jitter * (2 * colour - 1) for colour in colours]
            )
        return _dropped(image, canvas, labels)


def resized_size(height: int, width: int, resize: Resize, *, draw: float = 1.0) -> tuple[int, int]:
    """Height and width in pixels that an image is brought to, its aspect ratio kept up to rounding.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        resize: the setting.
        draw: in [0, 1], which of several short sides is taken; 1 is the last.
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
    """Brightness, contrast and saturation times a factor each, in this order."""
    brightness, contrast, saturation = factors
    image = F.adjust_brightness(image, brightness)
    image = F.adjust_contrast(image, contrast)
    jittered: Tensor = F.adjust_saturation(image, saturation)
    return jittered


def _dropped(image: Tensor, boxes: tv_tensors.BoundingBoxes, labels: Tensor) -> Sample:
    inside = F.clamp_bounding_boxes(boxes).as_subclass(Tensor)
    kept = (inside[:, 2:] > inside[:, :2]).all(dim=1)
    return image.as_subclass(Tensor), inside[kept], labels[kept]
