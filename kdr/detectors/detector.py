"""One torchvision detector, taken apart where distillation needs it: pixels, features, losses and
detections.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig, level_name
from kdr.errors import ShapeMismatchError

PAD_MULTIPLE = 32
"""Batches are padded to a multiple of this many pixels, as torchvision does; its anchors are
misplaced otherwise."""

_DRY_SIZE_PX = 128


@dataclass(frozen=True)
class Kind:
    """What is particular to one kind of detector."""

    build: Callable[..., nn.Module]
    """(config, num_classes, **torchvision's options) -> torchvision's model, randomly
    initialised."""
    losses: Callable[
        [Any, list[Tensor], ImageList, list[dict[str, Tensor]]],
        tuple[dict[str, Tensor], list[Tensor] | None],
    ]
    """(model, features, images, targets) -> loss terms, as in torchvision's forward, and the class
    logits behind them."""
    detections: Callable[[Any, list[Tensor], ImageList], list[dict[str, Tensor]]]
    """(model, features, images) -> detections in pixels of the batch, as in torchvision's
    forward."""
    class_logits: Callable[[Any, list[Tensor]], list[Tensor]] | None = None
    """(model, features) -> class logits (N, A, K, H, W) of each level; None for a kind that does
    not classify cells."""


class Detector(nn.Module):
    """A torchvision detector whose steps can be run one by one, on plain tensors.

    Run one after the other they give the same bits as torchvision's own `model(images, targets)` in
    training and `model(images)` in evaluation, where that is told to skip its resizing. Under
    autocast, anchors and losses stay in float32, which torchvision leaves to the features' type: in
    bfloat16 its anchors would be off by up to four pixels.

    Args:
        config: the settings that the model was built from.
        model: torchvision's model; its state_dict is what is saved and exported.
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
        """Keys of the head that `weights` did not fill. They keep initial values: in a teacher they
        mean nothing."""
        self._kind = kind
        self.strides, self.channels = _measured_levels(model.get_submodule("backbone"))
        """Pixels per cell and channels of each feature level, finest first; measured, not
        assumed."""
        self.level_names = tuple(level_name(stride) for stride in self.strides)
        transform: Any = model.get_submodule("transform")
        # buffers, so that normalising copies nothing from the host
        self.register_buffer(
            "mean", torch.tensor(transform.image_mean)[:, None, None], persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(transform.image_std)[:, None, None], persistent=False
        )

    def pixels(self, images: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Returns normalised images whose padded cells are exactly 0; nothing waits for the device.

        Args:
            images: uint8 (N, 3, H, W), each image in the top left corner; H and W multiples of 32.
            image_sizes: (height, width) of each image without its padding.

        Returns:
            float32 (N, 3, H, W), in the memory format of `images`.

        Raises:
            ShapeMismatchError: if H or W is no multiple of 32.
        """
        assert images.dtype == torch.uint8, images.dtype
        H, W = images.shape[-2:]
        if H % PAD_MULTIPLE or W % PAD_MULTIPLE:
            raise ShapeMismatchError(
                f"images: height and width must be multiples of {PAD_MULTIPLE}, got {H} x {W}. Pad "
                "at the right and the bottom"
            )
        pixels = images.float().div_(255).sub_(self.mean).div_(self.std)
        for index, (height, width) in enumerate(image_sizes):
            pixels[index, :, height:].zero_()
            pixels[index, :, :, width:].zero_()
        return pixels

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Returns the FPN outputs, finest first: (N, C, H, W) each. All that a teacher of features
        has to run.

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
        """Returns the loss terms of the detector, float32 scalars under torchvision's names; see
        `losses_and_class_logits`.
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
        """Returns the loss terms of the detector, and the class logits that they were computed
        from, by one pass of its head.

        Args:
            features: from `features`.
            pixels: what the features were computed from; only its shape counts here.
            image_sizes: (height, width) of each image without its padding.
            boxes: (M, 4) per image, xyxy in pixels of the batch, x1 < x2 and y1 < y2; M may be 0.
            labels: (M,) per image, int64 in [0, K).

        Returns:
            float32 scalars under torchvision's names; float32 (N, A, K, H, W) per level, views of
            what the head gave, or None for a kind that does not classify cells.
        """
        targets = [
            {"boxes": found, "labels": names} for found, names in zip(boxes, labels, strict=True)
        ]
        return self._kind.losses(
            self.model, list(features), ImageList(pixels, list(image_sizes)), targets
        )

    def class_logits(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Returns class logits (N, A, K, H, W) of each level, float32; A boxes per cell. All that a
        teacher of scores has to run beside `features`: the boxes' part of the head stays out.

        Args:
            features: from `features`; of a kind that classifies cells
                (`kdr.config.detector.ANCHORS_PER_CELL`).
        """
        assert self._kind.class_logits is not None, self.config.detector
        return self._kind.class_logits(self.model, list(features))

    @torch.no_grad()
    def detections(
        self, features: Sequence[Tensor], pixels: Tensor, image_sizes: Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Returns what is found in each image: `boxes` (M, 4) xyxy in pixels of the batch, `scores`
        (M,), `labels` (M,).

        Args:
            features: from `features`, in evaluation mode.
            pixels: what the features were computed from; only its shape counts here.
            image_sizes: (height, width) of each image without its padding; boxes are clipped to
                them.
        """
        return self._kind.detections(
            self.model, list(features), ImageList(pixels, list(image_sizes))
        )


@torch.no_grad()
def _measured_levels(backbone: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and channels by a forward of zeros; in evaluation mode, so that batch statistics stay
    as they are.
    """
    was_training = backbone.training
    backbone.eval()
    levels = list(backbone(torch.zeros(1, 3, _DRY_SIZE_PX, _DRY_SIZE_PX)).values())
    backbone.train(was_training)
    return tuple(_DRY_SIZE_PX // level.shape[-1] for level in levels), tuple(
        level.shape[1] for level in levels
    )
