"""A torchvision detector in separate steps: pixels, features, losses and detections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig, level_name
from kdr.errors import ShapeMismatchError

PAD_MULTIPLE = 32
"""Batches are padded to a multiple of this many pixels, as in torchvision, whose AnchorGenerator
derives strides from image and level sizes by integer division."""

_PROBE_SIZE_PX = 128
"""Side of the image from which strides and channels are measured: one cell at stride 128."""


@dataclass(frozen=True)
class Kind:
    """Functions that build and run one kind of detector."""

    build: Callable[..., nn.Module]
    """(config, num_classes, **torchvision's options) -> torchvision's model with random weights."""
    losses: Callable[
        [Any, list[Tensor], ImageList, list[dict[str, Tensor]]],
        tuple[dict[str, Tensor], list[Tensor] | None],
    ]
    """(model, features, images, targets) -> loss terms of torchvision's forward, and their class
    logits; None for a kind that does not classify cells."""
    detections: Callable[[Any, list[Tensor], ImageList], list[dict[str, Tensor]]]
    """(model, features, images) -> detections of torchvision's forward, in pixels of the batch."""
    class_logits: Callable[[Any, list[Tensor]], list[Tensor]] | None = None
    """(model, features) -> class logits (N, A, K, H, W) of each level; None for a kind that does
    not classify cells."""


class Detector(nn.Module):
    """A torchvision detector whose steps run separately, on plain tensors.

    torchvision's `forward` is one call from images to losses; distillation needs the features in
    between, and a teacher needs only those. Run in sequence, the steps are bit-identical to
    `model(images, targets)` in training and `model(images)` in evaluation, without resizing
    (torchvision 0.29). Under autocast, anchors and losses stay in float32. torchvision computes
    them in the features' dtype, and its bfloat16 anchors are off by up to four pixels.

    Args:
        config: the settings that the model was built from.
        model: torchvision's model; its state_dict is saved and exported.
        categories: name of each class; label k is `categories[k]`.
        kind: how to run this kind of model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: DetectorConfig, model: nn.Module, categories: Sequence[str], kind: Kind
    ) -> None:
        super().__init__()
        self.config = config
        self.model = model
        self.categories = tuple(categories)
        self.unloaded_head: frozenset[str] = frozenset()
        """Keys of the head that `weights` did not fill. They keep initial values, which are
        meaningless in a teacher."""
        self._kind = kind
        self.strides, self.channels = _measured_levels(model.get_submodule("backbone"))
        """Pixels per cell and channels of each feature level, finest first; measured."""
        self.level_names = tuple(level_name(stride) for stride in self.strides)
        transform: Any = model.get_submodule("transform")
        # Buffers, because torchvision's normalize (0.29) builds both tensors from lists for every
        # image, which copies from the host each time.
        self.register_buffer(
            "mean", torch.tensor(transform.image_mean)[:, None, None], persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(transform.image_std)[:, None, None], persistent=False
        )

    def pixels(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Returns normalised images with zeros in the padding, without synchronising the device.

        Args:
            images: uint8 (N, 3, H, W), each image in the top left corner; H and W multiples of 32.
            image_sizes: (height, width) of each image without its padding.

        Returns:
            float32 (N, 3, H, W), in the memory format of `images`.

        Raises:
            ShapeMismatchError: if H or W is not a multiple of 32.
        """
        assert images.dtype == torch.uint8, images.dtype
        H, W = images.shape[-2:]
        if H % PAD_MULTIPLE or W % PAD_MULTIPLE:
            raise ShapeMismatchError(
                f"images: height and width must be multiples of {PAD_MULTIPLE}, got {H} x {W}. Pad "
                "on the right and at the bottom"
            )
        # the same operations in the same order as torchvision, for bit-identical results
        pixels = images.float().div_(255).sub_(self.mean).div_(self.std)
        for index, (height, width) in enumerate(image_sizes):
            pixels[index, :, height:].zero_()
            pixels[index, :, :, width:].zero_()
        return pixels

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Returns the FPN outputs, (N, C, H, W) each, finest first.

        A teacher whose features alone are distilled runs nothing else: the head is about 45 % of a
            RetinaNet-R101.

        Args:
            pixels: (N, 3, H, W), from `pixels`.
        """
        return list(self.model.get_submodule("backbone")(pixels).values())

    def losses(
        self,
        features: Sequence[Tensor],
        pixels: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Returns the detector's loss terms, float32 scalars under torchvision's names.

        For the arguments see `losses_and_class_logits`.
        """
        return self.losses_and_class_logits(features, pixels, image_sizes, boxes, labels)[0]

    def losses_and_class_logits(
        self,
        features: Sequence[Tensor],
        pixels: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
    ) -> tuple[dict[str, Tensor], list[Tensor] | None]:
        """Returns the detector's loss terms and their class logits, from one pass of its head.

        Args:
            features: from `features`.
            pixels: the input of the features; only shape, dtype and device are used.
            image_sizes: (height, width) of each image without its padding.
            boxes: (M, 4) per image, xyxy in pixels of the batch, x1 < x2 and y1 < y2; M may be 0.
            labels: (M,) per image, int64 in [0, K).

        Returns:
            float32 scalars under torchvision's names; float32 (N, A, K, H, W) per level, views of
            the head's output, or None for a kind that does not classify cells.
        """
        targets = [
            {"boxes": found, "labels": names} for found, names in zip(boxes, labels, strict=True)
        ]
        return self._kind.losses(
            self.model, list(features), ImageList(pixels, list(image_sizes)), targets
        )

    def class_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns class logits (N, A, K, H, W) of each level, float32, with A boxes per cell.

        A teacher whose class scores are distilled runs this and `features`, but not the box branch
        of its head.

        Args:
            features: from `features`. The kind must classify cells
                (`kdr.config.detector.ANCHORS_PER_CELL`).
        """
        assert self._kind.class_logits is not None, self.config.detector
        return self._kind.class_logits(self.model, list(features))

    @torch.no_grad()
    def detections(
        self, features: Sequence[Tensor], pixels: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Returns the detections in each image.

        Args:
            features: from `features`, in evaluation mode.
            pixels: the input of the features; only shape, dtype and device are used.
            image_sizes: (height, width) of each image without its padding, to which boxes are
                clipped.

        Returns:
            Per image `boxes` (M, 4) xyxy in pixels of the batch, `scores` (M,) and `labels` (M,).
        """
        return self._kind.detections(
            self.model, list(features), ImageList(pixels, list(image_sizes))
        )


@torch.no_grad()
def _measured_levels(backbone: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Measures strides and channels with a forward pass of zeros.

    In evaluation mode, so that the statistics of batch norm do not change.
    """
    was_training = backbone.training
    backbone.eval()
    levels = list(backbone(torch.zeros(1, 3, _PROBE_SIZE_PX, _PROBE_SIZE_PX)).values())
    backbone.train(was_training)
    return tuple(_PROBE_SIZE_PX // level.shape[-1] for level in levels), tuple(
        level.shape[1] for level in levels
    )
