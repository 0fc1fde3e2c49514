"""Settings of a detector, and the facts about detectors that must be known without torch: levels
and strides.
"""

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

FEATURE_STRIDES: dict[str, tuple[int, ...]] = {
    "retinanet": (8, 16, 32, 64, 128),
    "fcos": (8, 16, 32, 64, 128),
    "faster_rcnn": (4, 8, 16, 32, 64),
}
"""Strides in pixels of a detector's FPN outputs, finest first. The detector itself is measured when
it is built."""

ANCHORS_PER_CELL: dict[str, int] = {"retinanet": 9, "fcos": 1}
"""Boxes that a detector classifies in every cell of its FPN outputs; those left out (Faster R-CNN)
classify proposals."""

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
"""Detector -> what it can be told, of the settings that not every detector has; those left out it
knows in full."""


def level_name(stride: float) -> str:
    """The usual name of a feature level: P3 for stride 8, P7 for stride 128."""
    return f"P{round(stride).bit_length() - 1}"


def level_names(detector: str) -> tuple[str, ...]:
    """Names of a detector's feature levels, finest first: ('P3', ..., 'P7') for RetinaNet and FCOS,
    P2 to P6 for Faster R-CNN.
    """
    return tuple(level_name(stride) for stride in FEATURE_STRIDES[detector])


def review_links(detector: str) -> tuple[str, ...]:
    """Every review link of a detector, finest first: ('P4->P3', ..., 'P7->P6') for RetinaNet."""
    names = level_names(detector)
    return tuple(f"{coarse}->{fine}" for fine, coarse in itertools.pairwise(names))


class DetectorConfig(Settings):
    """A detector out of torchvision's classes: RetinaNet, FCOS or Faster R-CNN over a resnet or
    mobilenet_v3 with an FPN.
    """

    detector: DetectorName = "retinanet"
    """Kind of detector."""
    backbone: BackboneName = "resnet50"
    """Network under the FPN."""
    fpn_channels: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Channels of the FPN and of the head."""
    norm: Literal["batch", "frozen"] = "batch"
    """Batch normalisation of the backbone: `batch` trains it, `frozen` keeps statistics and affine
    parameters fixed."""
    norm_momentum: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of each batch in the running statistics of `norm: batch`. Unset: the network's own, 0.1
    in resnets and 0.01 in mobilenets, whose statistics then lag hundreds of steps behind: too slow
    for a short training from scratch."""
    head_norm: Literal["none", "group"] | None = None
    """Normalisation in the head. Unset: as torchvision has it, none in RetinaNet and Faster R-CNN,
    group norm in FCOS."""
    anchor_scale: Annotated[float, Field(ge=0.25)] | None = None
    """Side of the smallest anchor divided by the stride; unset: torchvision's, 4 in RetinaNet (32
    px at stride 8) and 8 in Faster R-CNN (32 px at stride 4). Below 0.25 anchors would round to no
    area. FCOS has none."""
    p6_from: Literal["P5", "C5"] | None = None
    """What P6 is computed from, in RetinaNet and FCOS: P5, or the backbone's last level C5. Unset:
    as torchvision has it, C5 in the second version of its RetinaNet and P5 elsewhere."""
    p7_relu: bool | None = None
    """Whether P7 is computed from P6 after a ReLU, in RetinaNet and FCOS; unset: yes, as
    torchvision does. mmdetection's RetinaNet does not."""
    bottleneck_stride: Literal["3x3", "1x1"] | None = None
    """Which convolution of a bottleneck has its stride, in resnets from 50 layers on: the 3x3, or
    the first 1x1 as in the original ("caffe", MSRA) ones. Unset: the 3x3, as in torchvision."""
    pixel_mean: tuple[float, float, float] | None = None
    """Mean of the pixels that is subtracted, in 0 to 255, by channel in the order of
    `channel_order`. Unset: torchvision's, [123.675, 116.28, 103.53] in RGB."""
    pixel_std: tuple[Positive, Positive, Positive] | None = None
    """What the pixels are divided by, in the same form. Unset: torchvision's, [58.395, 57.12,
    57.375] in RGB."""
    channel_order: Literal["RGB", "BGR"] | None = None
    """Order of the colours in `pixel_mean`, `pixel_std`, and the first convolution of `weights` in
    another library's layout; unset: RGB. The detector itself takes RGB: a BGR file's first
    convolution is turned around when it is loaded."""
    box_loss: Literal["l1", "giou", "iou"] | None = None
    """Loss of the boxes: `l1` or `giou` in RetinaNet, `giou` or `iou` (-log IoU, as in the first
    FCOS) in FCOS. Unset: as torchvision has it, `l1` in the first version of its RetinaNet and
    `giou` elsewhere."""
    center_sampling: bool | None = None
    """Whether FCOS takes only the cells near the middle of a box for foreground, within 1.5
    strides; unset: yes, as torchvision does. Without it every cell inside a box is, as in the first
    FCOS."""
    norm_on_bbox: bool | None = None
    """Whether FCOS predicts distances in strides, cut off below 0; unset: yes, as torchvision does.
    Without it distances are in pixels, the exponential of the output times a learned scale of the
    level, as in the first FCOS."""
    weights: str | None = None
    """Weights of the whole detector: a torchvision enum name such as
    `RetinaNet_ResNet50_FPN_Weights.COCO_V1`, or a file."""
    weights_layout: WeightsLayout | None = None
    """Library that saved the file `weights`, where its names of layers are not torchvision's. It
    sets the defaults of `p6_from`, `p7_relu`, `bottleneck_stride`, `channel_order`, `pixel_mean`
    and `pixel_std` to those of the library's own models; see docs/teachers.md."""
    backbone_weights: str | None = None
    """Weights of the backbone alone: a torchvision enum name such as
    `ResNet50_Weights.IMAGENET1K_V1`, or a file."""
    trainable_stages: Annotated[int, Field(ge=0, le=5)] = 5
    """Backbone stages that are trained, counted from the last; 5 trains all, torchvision's usual
    fine-tuning is 3."""
    min_loaded_share: Share = 0.9
    """Smallest share of keys that `weights` must fill in backbone and neck each
    (`backbone_weights`: in the backbone)."""

    @model_validator(mode="after")
    def _fits_the_detector(self) -> "DetectorConfig":
        if self.weights_layout is not None:
            self._fill_in(self.weights_layout)
        if self.norm == "frozen" and self.weights is None and self.backbone_weights is None:
            raise ValueError(
                "norm: frozen batch norm needs weights whose statistics it can keep, got neither "
                "weights nor backbone_weights. Name one of them, or use norm: batch"
            )
        for name, known in _CHOICES[self.detector].items():
            value = getattr(self, name)
            if value is not None and value not in known:
                choices = " or ".join(map(str, known))
                rule = (
                    f"{self.detector} knows {choices}"
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
        if (
            "group" in (self.head_norm, "group" if self.detector == "fcos" else None)
            and self.fpn_channels % 32
        ):
            raise ValueError(
                "fpn_channels: group norm of 32 groups needs a multiple of 32, got "
                f"{self.fpn_channels}"
            )
        if self.bottleneck_stride is not None and not has_bottlenecks(self.backbone):
            raise ValueError(
                f"bottleneck_stride: {self.backbone} has no bottlenecks of three convolutions, got "
                f"{self.bottleneck_stride}. Leave it out"
            )
        if self.channel_order is not None and self.weights_layout is None:
            raise ValueError(
                "channel_order: is that of a file of another library and needs weights_layout, "
                f"got {self.channel_order} alone. Leave it out: pixel_mean and pixel_std are "
                "in RGB"
            )
        if self.channel_order == "BGR" and None in (self.pixel_mean, self.pixel_std):
            raise ValueError(
                "channel_order: BGR needs pixel_mean and pixel_std in the same order, got only the "
                "order. Take both from the file's own configuration"
            )
        return self

    def _fill_in(self, layout: WeightsLayout) -> None:
        """Checks that weights can have this layout, and sets its defaults without marking them as
        set by the user.
        """
        if self.weights is None or is_weights_enum(self.weights):
            raise ValueError(
                f"weights_layout: needs a file in weights, got {self.weights or 'none'}. Name the "
                "file, or leave it out"
            )
        if not self.backbone.startswith(("resnet", "resnext", "wide_resnet")):
            raise ValueError(
                f"weights_layout: {layout} files are read for resnets and resnexts, got "
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
    """Whether `name` is a torchvision weights enum such as `ResNet50_Weights.IMAGENET1K_V1`, rather
    than a file.
    """
    return "_Weights." in name and "/" not in name
