"""Settings of a detector; its feature levels and strides, known without torch."""

import itertools
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kdr.config.layout import WeightsLayout, has_bottlenecks, layout_defaults
from kdr.config.settings import Positive, Settings, Share, defaulted

DetectorName = Literal["retinanet", "fcos", "faster_rcnn"]
BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
]

# Known here without building a detector: settings are checked without importing torch.
FEATURE_STRIDES: dict[str, tuple[int, ...]] = {
    "retinanet": (8, 16, 32, 64, 128),
    "fcos": (8, 16, 32, 64, 128),
    "faster_rcnn": (4, 8, 16, 32, 64),
}
"""Strides in pixels of a detector's FPN outputs, finest first. Building a detector measures the
actual strides."""

ANCHORS_PER_CELL: dict[str, int] = {"retinanet": 9, "fcos": 1}
"""Number of boxes that a detector classifies in each cell of its FPN outputs. Faster R-CNN has no
entry: it classifies proposals instead."""

_CHOICES: dict[str, dict[str, tuple[str | bool, ...]]] = {
    "retinanet": {
        "p6_from": ("P5", "C5"),
        "box_loss": ("l1", "giou"),
        "center_sampling": (),
        "norm_on_bbox": (),
    },
    "fcos": {"p6_from": ("P5", "C5"), "box_loss": ("giou", "iou")},
    "faster_rcnn": {
        "p6_from": (),
        "p7_relu": (),
        "box_loss": (),
        "center_sampling": (),
        "norm_on_bbox": (),
    },
}
"""Detector -> setting -> accepted values, for settings that some detectors lack. A detector accepts
every value of a setting that is not listed."""


def level_name(stride: float) -> str:
    """Returns the usual name of a feature level: P3 for stride 8, P7 for stride 128."""
    return f"P{round(stride).bit_length() - 1}"


def level_names(detector: str) -> tuple[str, ...]:
    """Returns the names of a detector's feature levels, finest first: ('P3', ..., 'P7') for
    RetinaNet and FCOS, P2 to P6 for Faster R-CNN.
    """
    return tuple(level_name(stride) for stride in FEATURE_STRIDES[detector])


def review_links(detector: str) -> tuple[str, ...]:
    """Returns a detector's review links, finest first: ('P4->P3', ..., 'P7->P6') for RetinaNet."""
    names = level_names(detector)
    return tuple(f"{coarse}->{fine}" for fine, coarse in itertools.pairwise(names))


class DetectorConfig(Settings):
    """A torchvision detector: RetinaNet, FCOS or Faster R-CNN, with an FPN on a resnet or
    mobilenet_v3.
    """

    detector: DetectorName = "retinanet"
    """Kind of detector."""
    backbone: BackboneName = "resnet50"
    """Backbone network below the FPN."""
    fpn_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Channels of the FPN and the head."""
    norm: Literal["batch", "frozen"] = "batch"
    """Batch normalisation of the backbone: `batch` trains it, `frozen` fixes its statistics and
    affine parameters."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    """Momentum of the running statistics with `norm: batch`: the weight of each new batch. Unset:
    0.1 in resnets, 0.01 in mobilenets, as in torchvision. At 0.01 the statistics lag hundreds of
    steps behind, too far for a short training run from scratch."""
    head_norm: Literal["none", "group"] | None = None
    """Normalisation in the head. Unset: as in torchvision, none in RetinaNet and Faster R-CNN,
    group norm in FCOS."""
    anchor_scale: Annotated[float, Field(ge=0.25)] | None = None
    """Side of the smallest anchor, divided by the stride. Unset: as in torchvision, 4 in RetinaNet
    (32 px at stride 8) and 8 in Faster R-CNN (32 px at stride 4). Anchors below 0.25 would be
    rounded to an area of 0. FCOS has no anchors."""
    p6_from: Literal["P5", "C5"] | None = None
    """Input of P6 in RetinaNet and FCOS: P5, or the backbone's last level C5. Unset: as in
    torchvision, C5 in the second version of its RetinaNet and P5 elsewhere."""
    p7_relu: bool | None = None
    """Whether a ReLU comes between P6 and P7 in RetinaNet and FCOS. Unset: true, as in torchvision.
    mmdetection's RetinaNet has none."""
    bottleneck_stride: Literal["3x3", "1x1"] | None = None
    """Which convolution of a bottleneck block has the stride, in resnets of 50 or more layers: the
    3x3, or the first 1x1 as in the original ("caffe", MSRA) resnets. Unset: the 3x3, as in
    torchvision."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean to subtract from the pixels (0 to 255), one value per channel in the order
    `channel_order`. Unset: torchvision's, [123.675, 116.28, 103.53] in RGB."""
    pixel_std: tuple[Positive, Positive, Positive] | None = None
    """Standard deviation by which the pixels are divided after subtracting `pixel_mean`; in the
    same form. Unset: torchvision's, [58.395, 57.12, 57.375] in RGB."""
    channel_order: Literal["RGB", "BGR"] | None = None
    """Order of the channels in `pixel_mean`, `pixel_std` and the first convolution of `weights` in
    another library's layout. Unset: RGB. The detector itself always takes RGB: loading a BGR file
    reverses the channels of its first convolution."""
    box_loss: Literal["l1", "giou", "iou"] | None = None
    """Box loss: `l1` or `giou` in RetinaNet; `giou` or `iou` (-log IoU, as in the original FCOS) in
    FCOS. Unset: as in torchvision, `l1` in the first version of its RetinaNet and `giou`
    elsewhere."""
    center_sampling: bool | None = None
    """Whether only the cells within 1.5 strides of a box's centre are foreground in FCOS. Unset:
    true, as in torchvision. false: all cells inside the box are foreground, as in the original
    FCOS."""
    norm_on_bbox: bool | None = None
    """Whether FCOS predicts distances in strides, clamped at 0. Unset: true, as in torchvision.
    false: distances in pixels, computed as exp(learned scale of the level x output), as in the
    original FCOS."""
    weights: str | None = None
    """Weights of the whole detector: the name of a torchvision enum such as
    `RetinaNet_ResNet50_FPN_Weights.COCO_V1`, or a file."""
    weights_layout: WeightsLayout | None = None
    """Library whose layer names the file `weights` uses. Unset: torchvision. It sets the defaults
    of `p6_from`, `p7_relu`, `bottleneck_stride`, `channel_order`, `pixel_mean` and `pixel_std` to
    those of the library's own models; see docs/teachers.md."""
    backbone_weights: str | None = None
    """Weights of the backbone alone: the name of a torchvision enum such as
    `ResNet50_Weights.IMAGENET1K_V1`, or a file."""
    trainable_stages: Annotated[int, Field(ge=0, le=5)] = 5
    """Backbone stages to train, counted from the last; 5: all. torchvision fine-tunes 3 by
    default."""
    min_loaded_share: Share = 0.9
    """Smallest share of the backbone's keys, and of the neck's keys, that `weights` must fill. For
    `backbone_weights`: of the backbone's keys."""

    @model_validator(mode="after")
    def _fits_the_detector(self) -> "DetectorConfig":
        # first, because the rules below also apply to the defaults of a layout
        if self.weights_layout is not None:
            self._fill_in(self.weights_layout)
        if self.norm == "frozen" and self.weights is None and self.backbone_weights is None:
            raise ValueError(
                "norm: frozen needs trained statistics, got neither weights nor backbone_weights. "
                "Set one of them, or use norm: batch"
            )
        for name, known in _CHOICES[self.detector].items():
            value = getattr(self, name)
            if value is not None and value not in known:
                choices = " or ".join(map(str, known))
                rule = (
                    f"must be {choices} for {self.detector}"
                    if known
                    else f"{self.detector} has no such setting"
                )
                raise ValueError(f"{name}: {rule}, got {value}. Leave it out")
        if self.detector == "fcos":
            if self.head_norm == "none":
                raise ValueError(
                    "head_norm: torchvision's FCOS head always has group norm, got none. Leave "
                    "it out"
                )
            if self.anchor_scale is not None:
                raise ValueError("anchor_scale: FCOS has no anchors. Leave it out")
        if self.detector == "faster_rcnn" and self.head_norm == "group":
            raise ValueError(
                "head_norm: torchvision's Faster R-CNN has no group norm in its head, got group. "
                "Leave it out"
            )
        # torchvision's heads have GroupNorm(32, channels)
        if (
            "group" in (self.head_norm, "group" if self.detector == "fcos" else None)
            and self.fpn_channels % 32
        ):
            raise ValueError(
                "fpn_channels: must be a multiple of 32 for the head's group norm, got "
                f"{self.fpn_channels}"
            )
        if self.bottleneck_stride is not None and not has_bottlenecks(self.backbone):
            raise ValueError(
                f"bottleneck_stride: {self.backbone} has no bottlenecks of three convolutions, got "
                f"{self.bottleneck_stride}. Leave it out"
            )
        if self.channel_order is not None and self.weights_layout is None:
            raise ValueError(
                "channel_order: needs weights_layout, the library that saved the weights, got "
                f"{self.channel_order} alone. Leave it out: pixel_mean and pixel_std are in RGB"
            )
        if self.channel_order == "BGR" and None in (self.pixel_mean, self.pixel_std):
            raise ValueError(
                "channel_order: BGR needs pixel_mean and pixel_std in BGR too, got only the "
                "order. Copy both from the file's configuration"
            )
        return self

    def _fill_in(self, layout: WeightsLayout) -> None:
        """Checks that the weights can have this layout, and sets its defaults. These do not count
        as set by the user.
        """
        if self.weights is None or is_weights_enum(self.weights):
            raise ValueError(
                f"weights_layout: needs a file in weights, got {self.weights or 'none'}. Name the "
                "file, or leave weights_layout out"
            )
        if not self.backbone.startswith(("resnet", "resnext", "wide_resnet")):
            raise ValueError(
                f"weights_layout: {layout} files need a resnet or resnext backbone, got "
                f"{self.backbone}. Leave it out"
            )
        defaults = layout_defaults(
            layout,
            detector=self.detector,
            backbone=self.backbone,
            channel_order=self.channel_order,
        )
        for name, value in defaulted(self, defaults).items():
            object.__setattr__(self, name, value)


def is_weights_enum(name: str) -> bool:
    """Returns whether `name` is a torchvision weights enum, such as
    `ResNet50_Weights.IMAGENET1K_V1`, rather than a file.
    """
    return "_Weights." in name and "/" not in name
