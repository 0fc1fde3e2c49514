"""Defaults for weights of other libraries, whose networks differ from torchvision's."""

from typing import Any, Literal

WeightsLayout = Literal["mmdetection", "detectron2"]

IMAGENET_MEAN_RGB = (123.675, 116.28, 103.53)
IMAGENET_STD_RGB = (58.395, 57.12, 57.375)
"""torchvision's mean and std of pixels in 0 to 255."""


def has_bottlenecks(backbone: str) -> bool:
    """Returns whether a backbone has bottleneck blocks: a 1x1, a 3x3 and a 1x1 convolution."""
    return "resne" in backbone and backbone not in ("resnet18", "resnet34")


def loads_class_layer(layout: WeightsLayout | None, *, detector: str) -> bool:
    """Returns whether the class layer of weights can be loaded.

    That needs a head like torchvision's, and a file format that stores class names.
    """
    return layout is None or (layout == "mmdetection" and detector == "retinanet")


def layout_defaults(
    layout: WeightsLayout, *, detector: str, backbone: str, channel_order: str | None
) -> dict[str, Any]:
    """Returns the settings in which a library's own models differ from torchvision's.

    Sources: `configs/_base_/models` and `configs/fcos` of mmdetection;
    `detectron2/config/defaults.py`, `configs/` and `detectron2/modeling/backbone/fpn.py` of
    detectron2. mmdetection's "caffe" models differ from its other models and are not covered here.

    Args:
        layout: the library.
        detector: kind of detector.
        backbone: name of the backbone.
        channel_order: as set by the user; the pixels' mean and std depend on it.
    """
    if layout == "mmdetection":
        return {"p6_from": "C5", "p7_relu": False} if detector == "retinanet" else {}
    found: dict[str, Any] = {"channel_order": channel_order or "BGR"}
    if detector == "retinanet":
        found["p6_from"] = "C5"
    # detectron2's resnets start from MSRA's original weights, whose first convolution already
    # includes the pixels' std; its resnexts start from Caffe2's
    original = backbone.startswith("resnet")
    if found["channel_order"] == "BGR":
        found["pixel_mean"] = IMAGENET_MEAN_RGB[::-1]
        found["pixel_std"] = (1.0, 1.0, 1.0) if original else IMAGENET_STD_RGB[::-1]
    if original and has_bottlenecks(backbone):
        found["bottleneck_stride"] = "1x1"
    return found
