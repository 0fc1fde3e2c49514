"""Small batches of random images and boxes, padded as the loader pads them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomBatch:
    images: Tensor  # uint8 [N, 3, H, W], noise in the padded cells too
    image_sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]

    def as_torchvision_takes_it(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images = [
            image[:, :height, :width].float() / 255 for image, (height, width) in zip(self.images, self.image_sizes, strict=True)
        ]
        return images, [{"boxes": b, "labels": k} for b, k in zip(self.boxes, self.labels, strict=True)]


def set_score_threshold(model: Any, threshold: float) -> None:
    """Lets a model show detections of lower scores than usual."""
    (model.roi_heads if hasattr(model, "roi_heads") else model).score_thresh = threshold


@pytest.fixture
def shows_scores_from() -> Callable[[Any, float], None]:
    return set_score_threshold


@pytest.fixture
def random_batch() -> Callable[..., RandomBatch]:
    def build(image_sizes: Sequence[tuple[int, int]], *, num_boxes: Sequence[int], num_classes: int = 3) -> RandomBatch:
        draw = torch.Generator().manual_seed(7)
        H, W = (-(-max(sides) // 32) * 32 for sides in zip(*image_sizes, strict=True))
        images = torch.randint(0, 256, (len(image_sizes), 3, H, W), dtype=torch.uint8, generator=draw)
        boxes, labels = [], []
        for (height, width), count in zip(image_sizes, num_boxes, strict=True):
            scale = torch.tensor([width, height])
            corner = torch.rand(count, 2, generator=draw) * 0.5
            side = 0.1 + torch.rand(count, 2, generator=draw) * 0.4
            boxes.append(torch.cat([corner * scale, (corner + side) * scale], dim=1))
            labels.append(torch.randint(0, num_classes, (count,), generator=draw))
        return RandomBatch(images, list(image_sizes), boxes, labels)

    return build
