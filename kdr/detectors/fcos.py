"""torchvision's FCOS (Tian et al. 2019, 2020), with and without its later improvements.

torchvision's class has center sampling, GIoU and distances in strides.
The original FCOS has none of the three. The settings `center_sampling`, `box_loss` and
`norm_on_bbox` restore it, because published baselines often use it.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import fcos
from torchvision.models.detection.image_list import ImageList

from kdr.config.detector import FEATURE_STRIDES, DetectorConfig
from kdr.detectors import dense
from kdr.detectors.backbones import fpn_backbone
from kdr.detectors.detector import Kind

_MIN_IOU = 1e-6
"""Bounds -log IoU for boxes that do not overlap."""


def _build(config: DetectorConfig, num_classes: int, **options: Any) -> fcos.FCOS:
    backbone = fpn_backbone(
        config.backbone,
        channels=config.fpn_channels,
        norm=config.norm,
        trainable_stages=config.trainable_stages,
        p6_from=config.p6_from or "P5",
        p7_relu=config.p7_relu is not False,
        bottleneck_stride=config.bottleneck_stride or "3x3",
    )
    if config.center_sampling is False:
        # torchvision (0.29) has no switch: a cell matches if it is within the radius of the box's
        # centre
        options = {"center_sampling_radius": math.inf, **options}
    head = (_IouHead if config.box_loss == "iou" else fcos.FCOSHead)(
        config.fpn_channels, 1, num_classes
    )
    model = fcos.FCOS(backbone, num_classes, head=head, **options)
    if config.norm_on_bbox is False:
        # After construction, so that the random draws are torchvision's. Head and model each have a
        # box coder: one for losses, one for detections.
        model.head.regression_head = _PixelRegression(model.head.regression_head)
        model.head.box_coder.normalize_by_size = model.box_coder.normalize_by_size = False
    return model


class _IouHead(fcos.FCOSHead):  # type: ignore[misc]
    """torchvision's head with the box loss -log IoU (Yu et al. 2016, UnitBox) instead of GIoU."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Returns torchvision's loss terms with this box loss, a mean over foreground cells."""
        # torchvision (0.29) has no hook for the box loss. Its own one is computed and dropped,
        # which costs little: only foreground cells take part.
        losses: dict[str, Tensor] = super().compute_loss(
            targets, head_outputs, anchors, matched_idxs
        )
        of_cells = []
        for target, distances, of_image, matched in zip(
            targets, head_outputs["bbox_regression"], anchors, matched_idxs, strict=True
        ):
            foreground = matched >= 0
            found = self.box_coder.decode(distances[foreground], of_image[foreground])
            of_cells.append(
                -_iou(found, target["boxes"][matched[foreground]]).clamp(min=_MIN_IOU).log()
            )
        per_cell = torch.cat(of_cells)
        # a batch without objects has a loss of 0, with gradients
        return {**losses, "bbox_regression": per_cell.sum() / max(1, len(per_cell))}


def _iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Returns the IoU (M,) of each box (M, 4) with its partner (M, 4)."""
    sides = torch.minimum(boxes_xyxy[:, 2:], others_xyxy[:, 2:]) - torch.maximum(
        boxes_xyxy[:, :2], others_xyxy[:, :2]
    )
    shared = sides.clamp(min=0).prod(1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (boxes_xyxy, others_xyxy)]
    return shared / (areas[0] + areas[1] - shared)


class _PixelRegression(nn.Module):
    """torchvision's regression head with a different last step: exp(level's scale x output) pixels.

    Takes over the modules of `head` under their names, so that their weights have the same keys.
    """

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.conv, self.bbox_reg, self.bbox_ctrness = head.conv, head.bbox_reg, head.bbox_ctrness
        self.scales = nn.Parameter(torch.ones(len(FEATURE_STRIDES["fcos"])))

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Returns distances (N, cells of all levels, 4) and centerness (N, cells, 1)."""
        distances, centerness = [], []
        for scale, level in zip(self.scales, x, strict=True):
            found = self.conv(level)
            # exp of more than 11 overflows float16
            distances.append(_by_cell(torch.exp(scale * self.bbox_reg(found).float())))
            centerness.append(_by_cell(self.bbox_ctrness(found)))
        return torch.cat(distances, 1), torch.cat(centerness, 1)


def _by_cell(output: Tensor) -> Tensor:
    return output.flatten(2).transpose(1, 2)  # [N, C, H, W] -> [N, HW, C]


def _losses(
    model: fcos.FCOS, features: list[Tensor], images: ImageList, targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    outputs = dense.head_outputs(model, features, images)
    anchors = dense.anchors(model, features, images)
    with dense.full_precision(images):
        losses: dict[str, Tensor] = model.compute_loss(
            targets, outputs, anchors, dense.cells_per_level(features)
        )
    return losses, dense.logits_by_level(outputs["cls_logits"], features)


FCOS = Kind(
    build=_build, losses=_losses, detections=dense.detections, class_logits=dense.class_logits
)
