"""torchvision's Faster R-CNN (Ren et al. 2015) with a feature pyramid (Lin et al. 2017).

Its losses sample anchors and proposals at random, as the method requires, from torch's global
generator.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead

from kdr.config.detector import FEATURE_STRIDES, DetectorConfig
from kdr.detectors.backbones import fpn_backbone, overwrite_frozen_eps
from kdr.detectors.detector import Kind

_TORCHVISION_ANCHOR_SCALE = 8.0
_FIRST_VERSION = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"
_LEVELS = ("0", "1", "2", "3", "pool")
"""torchvision's names; its RoI pooling uses "0" to "3" and the first stage all of them."""
# torchvision's defaults, repeated because a box head or predictor of our own needs the sizes
_ROI_SIDE = 7
_ROI_FEATURES = 1024


def _build(config: DetectorConfig, num_classes: int, **options: Any) -> FasterRCNN:
    """Builds torchvision's model, with one class more than the data: class 0 is the background."""
    backbone = fpn_backbone(
        config.backbone,
        channels=config.fpn_channels,
        norm=config.norm,
        trainable_stages=config.trainable_stages,
        p6_from="pool",
        bottleneck_stride=config.bottleneck_stride or "3x3",
    )
    scale = _TORCHVISION_ANCHOR_SCALE if config.anchor_scale is None else config.anchor_scale
    generator = _Anchors(
        tuple((int(scale * stride),) for stride in FEATURE_STRIDES["faster_rcnn"]),
        ((0.5, 1.0, 2.0),) * len(_LEVELS),
    )
    model = FasterRCNN(
        backbone,
        rpn_anchor_generator=generator,
        rpn_head=_RPNHead(config.fpn_channels, generator.num_anchors_per_location()[0]),
        box_head=TwoMLPHead(config.fpn_channels * _ROI_SIDE**2, _ROI_FEATURES),
        box_predictor=_Predictor(_ROI_FEATURES, num_classes + 1),
        **options,
    )
    if config.weights == _FIRST_VERSION:
        overwrite_frozen_eps(model, 0.0)
    return model


class _Anchors(AnchorGenerator):  # type: ignore[misc]
    """Anchors in the images' dtype, as in `kdr.detectors.dense.anchors` and for the same reason.

    A subclass, because torchvision's RPN calls its generator itself.
    """

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        stand_in = image_list.tensors.new_empty(())
        found: list[Tensor] = super().forward(
            image_list, [stand_in.expand(level.shape) for level in feature_maps]
        )
        return found


class _RPNHead(RPNHead):  # type: ignore[misc]
    """The first stage's head, with float32 outputs: box coordinates need more than 16 bits."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, deltas = super().forward(x)
        return _full(objectness), _full(deltas)


class _Predictor(FastRCNNPredictor):  # type: ignore[misc]
    """The second stage's head, with float32 outputs for the same reason."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores, deltas = _full(super().forward(x))
        return scores, deltas


def _full(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [output.to(torch.promote_types(output.dtype, torch.float32)) for output in outputs]


def _losses(
    model: FasterRCNN, features: list[Tensor], images: ImageList, targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], None]:
    named = dict(zip(_LEVELS, features, strict=True))
    # kdr's labels start at 0; here 0 is the background
    shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
    proposals, of_proposals = model.rpn(images, named, shifted)
    _, of_boxes = model.roi_heads(named, proposals, images.image_sizes, shifted)
    return {**of_boxes, **of_proposals}, None


def _detections(
    model: FasterRCNN, features: list[Tensor], images: ImageList
) -> list[dict[str, Tensor]]:
    named = dict(zip(_LEVELS, features, strict=True))
    proposals, _ = model.rpn(images, named)
    found, _ = model.roi_heads(named, proposals, images.image_sizes)
    return [{**image, "labels": image["labels"] - 1} for image in found]


FASTER_RCNN = Kind(build=_build, losses=_losses, detections=_detections)
