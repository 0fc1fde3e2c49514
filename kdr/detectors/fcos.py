"""FCOS (Tian et al. 2019/2020, anchor-free, center sampling and GIoU), torchvision's class."""

from typing import Any

from torch import Tensor
from torchvision.models.detection import fcos
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import DetectorConfig
from kdr.detectors import dense
from kdr.detectors.backbones import fpn_backbone
from kdr.detectors.detector import Kind


def _build(config: DetectorConfig, num_classes: int, **options: Any) -> fcos.FCOS:
    backbone = fpn_backbone(
        config.backbone, channels=config.fpn_channels, norm=config.norm, trainable_stages=config.trainable_stages
    )
    return fcos.FCOS(backbone, num_classes, **options)


def _losses(model: fcos.FCOS, features: list[Tensor], images: ImageList, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    outputs, anchors = dense.head_outputs(model, features, images), dense.anchors(model, features, images)
    with dense.full_precision(images):
        losses: dict[str, Tensor] = model.compute_loss(targets, outputs, anchors, dense.cells_per_level(features))
    return losses


FCOS = Kind(build=_build, losses=_losses, detections=dense.detections)
