"""Heads, anchors and detections of RetinaNet and FCOS, which classify every cell."""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.image_list import ImageList


def head_outputs(model: Any, features: list[Tensor], images: ImageList) -> dict[str, Tensor]:
    """Returns the head's outputs by name, (N, anchors of all levels, values), in the pixels' dtype.

    Under autocast the head computes in 16 bits. The next steps, sums over 1e5 anchors and box
    coordinates, need more precision.
    """
    return {name: output.to(images.tensors.dtype) for name, output in model.head(features).items()}


def class_logits(model: Any, features: list[Tensor]) -> list[Tensor]:
    """Returns class logits (N, A, K, H, W) of each level, float32 or wider.

    Runs only the class branch of the head.
    """
    logits: Tensor = model.head.classification_head(features)
    return logits_by_level(logits.to(torch.promote_types(logits.dtype, torch.float32)), features)


def logits_by_level(logits: Tensor, features: list[Tensor]) -> list[Tensor]:
    """Splits the output of a class branch into its levels.

    Args:
        logits: (N, anchors of all levels, K).
        features: the levels, for their sizes.

    Returns:
        A view (N, A, K, H, W) per level.
    """
    cells = cells_per_level(features)
    anchors_per_cell = logits.shape[1] // sum(cells)
    of_levels = logits.split_with_sizes([count * anchors_per_cell for count in cells], dim=1)
    return [
        of_level.view(len(logits), *level.shape[-2:], anchors_per_cell, logits.shape[-1]).permute(
            0, 3, 4, 1, 2
        )
        for of_level, level in zip(of_levels, features, strict=True)
    ]


def anchors(model: Any, features: list[Tensor], images: ImageList) -> list[Tensor]:
    """Returns the anchors of each image, (anchors of all levels, 4) xyxy in pixels of the batch."""
    # torchvision's AnchorGenerator (0.29) computes in the dtype of the features. Under autocast
    # that is bfloat16, which cannot represent odd pixel positions above 256. The generator reads
    # only dtype, device and shape, so it gets stand-ins in the pixels' dtype; expanding a scalar
    # costs no memory.
    stand_in = images.tensors.new_empty(())
    found: list[Tensor] = model.anchor_generator(
        images, [stand_in.expand(level.shape) for level in features]
    )
    return found


def cells_per_level(features: list[Tensor]) -> list[int]:
    """Returns H x W of each level."""
    return [level.shape[-2] * level.shape[-1] for level in features]


def full_precision(images: ImageList) -> torch.autocast:
    """Returns a context that disables autocast on the images' device."""
    return torch.autocast(images.tensors.device.type, enabled=False)


def detections(model: Any, features: list[Tensor], images: ImageList) -> list[dict[str, Tensor]]:
    """Returns boxes, scores and labels per image, by torchvision's own post-processing."""
    outputs, of_images = head_outputs(model, features, images), anchors(model, features, images)
    # torchvision keeps the best candidates of each level, so its post-processing takes levels apart
    cells = cells_per_level(features)
    anchors_per_cell = of_images[0].shape[0] // sum(cells)
    counts = [count * anchors_per_cell for count in cells]
    by_level = {
        name: list(output.split_with_sizes(counts, dim=1)) for name, output in outputs.items()
    }
    anchors_by_level = [list(all_levels.split_with_sizes(counts)) for all_levels in of_images]
    with full_precision(images):
        found: list[dict[str, Tensor]] = model.postprocess_detections(
            by_level, anchors_by_level, images.image_sizes
        )
    return found
