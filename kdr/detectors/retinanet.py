"""torchvision's RetinaNet (Lin et al. 2017, Focal Loss), in both of its versions."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

from kdr.config.detector import FEATURE_STRIDES, DetectorConfig
from kdr.detectors import dense
from kdr.detectors.backbones import fpn_backbone, overwrite_frozen_eps
from kdr.detectors.detector import Kind

_TORCHVISION_ANCHOR_SCALE = 4.0
_FIRST_VERSION = "RetinaNet_ResNet50_FPN_Weights.COCO_V1"
_SECOND_VERSION = "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1"


def _build(config: DetectorConfig, num_classes: int, **options: Any) -> RetinaNet:
    """Builds torchvision's model; for weights of its second version with P6 from C5 and GIoU."""
    second = config.weights == _SECOND_VERSION
    backbone = fpn_backbone(
        config.backbone,
        channels=config.fpn_channels,
        norm=config.norm,
        trainable_stages=config.trainable_stages,
        p6_from=config.p6_from or ("C5" if second else "P5"),
        p7_relu=config.p7_relu is not False,
        bottleneck_stride=config.bottleneck_stride or "3x3",
    )
    generator = anchor_generator(
        _TORCHVISION_ANCHOR_SCALE if config.anchor_scale is None else config.anchor_scale,
        whole_pixels=config.weights_layout is None,
    )
    norm = partial(nn.GroupNorm, 32) if config.head_norm == "group" else None
    head = RetinaNetHead(
        config.fpn_channels, generator.num_anchors_per_location()[0], num_classes, norm_layer=norm
    )
    if (config.box_loss or ("giou" if second else "l1")) == "giou":
        # private, but torchvision's own second version sets it the same way (0.29); the constructor
        # has no argument for it
        head.regression_head._loss_type = "giou"
    model = RetinaNet(backbone, num_classes, anchor_generator=generator, head=head, **options)
    if config.weights == _FIRST_VERSION:
        overwrite_frozen_eps(model, 0.0)
    return model


def anchor_generator(scale: float, *, whole_pixels: bool = True) -> AnchorGenerator:
    """Returns a generator of nine anchors per cell: three sizes, 2^(1/3) apart, by three ratios.

    Args:
        scale: side of the smallest anchor divided by the stride; torchvision's own is 4.
        whole_pixels: truncate sizes and round anchors to whole pixels, as torchvision does;
            mmdetection and detectron2 do not.
    """
    sizes = tuple(
        tuple(scale * stride * 2 ** (third / 3) for third in range(3))
        for stride in FEATURE_STRIDES["retinanet"]
    )
    ratios = ((0.5, 1.0, 2.0),) * len(sizes)
    if not whole_pixels:
        return _ExactAnchors(sizes, ratios)
    return AnchorGenerator(tuple(tuple(map(int, of_level)) for of_level in sizes), ratios)


class _ExactAnchors(AnchorGenerator):  # type: ignore[misc]
    """torchvision's anchors, in its order, without rounding.

    torchvision (0.29) rounds inside `generate_anchors`, without an option. A teacher trained by
    another library has learned boxes relative to unrounded anchors.
    """

    def generate_anchors(
        self,
        scales: list[float],
        aspect_ratios: list[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Returns anchors (9, 4) xyxy around 0, sizes within ratios (height / width)."""
        sizes, ratios = (
            torch.tensor(values, dtype=dtype, device=device) for values in (scales, aspect_ratios)
        )
        widths, heights = (
            torch.outer(of_ratios, sizes).flatten() for of_ratios in (ratios.rsqrt(), ratios.sqrt())
        )
        return torch.stack([-widths, -heights, widths, heights], dim=1) / 2


def _losses(
    model: RetinaNet, features: list[Tensor], images: ImageList, targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    outputs = dense.head_outputs(model, features, images)
    anchors = dense.anchors(model, features, images)
    with dense.full_precision(images):
        losses: dict[str, Tensor] = model.compute_loss(targets, outputs, anchors)
    return losses, dense.logits_by_level(outputs["cls_logits"], features)


RETINANET = Kind(
    build=_build, losses=_losses, detections=dense.detections, class_logits=dense.class_logits
)
