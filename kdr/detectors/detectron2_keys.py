"""Translates detectron2's layer names to torchvision's.

The names are defined in `detectron2/modeling`: `backbone/resnet.py`, `backbone/fpn.py` and
`meta_arch/retinanet.py`. The head of its RetinaNet computes the same as torchvision's, except for
the order of the nine boxes of a cell: ratios within sizes, where torchvision has sizes within
ratios. The heads of its FCOS and Faster R-CNN differ from torchvision's and are not loaded.
"""

import re

from torch import Tensor

from kdr.detectors.translation import Rule

MARK = r"backbone\.fpn_(lateral|output)\d\.weight"
"""Pattern of a key that only detectron2's files have."""

_SIZES = _RATIOS = 3
_BY_BOX = re.compile(r"head\.(cls_score|bbox_pred)\.")


def _stage(found: re.Match[str]) -> str:
    return f"backbone.body.layer{int(found[1]) - 1}.{found[2]}."


def _fpn_block(finest: int) -> tuple[Rule, ...]:
    """Returns rules for convolutions that detectron2 numbers by level, from P<finest> on."""
    return (
        (
            r"backbone\.fpn_lateral(\d)\.(\w+)",
            lambda found: f"backbone.fpn.inner_blocks.{int(found[1]) - finest}.0.{found[2]}",
        ),
        (
            r"backbone\.fpn_output(\d)\.(\w+)",
            lambda found: f"backbone.fpn.layer_blocks.{int(found[1]) - finest}.0.{found[2]}",
        ),
        (r"backbone\.top_block\.(p\d)\.(\w+)", r"backbone.fpn.extra_blocks.\1.\2"),
        (r"backbone\.(.+)", r"backbone.fpn.\1"),
    )


_BODY: tuple[Rule, ...] = (
    (r"backbone\.bottom_up\.stem\.conv1\.norm\.(\w+)", r"backbone.body.bn1.\1"),
    (r"backbone\.bottom_up\.stem\.(.+)", r"backbone.body.\1"),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.conv(\d)\.norm\.(\w+)",
        lambda found: f"{_stage(found)}bn{found[3]}.{found[4]}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.norm\.(\w+)",
        lambda found: f"{_stage(found)}downsample.1.{found[3]}",
    ),
    (
        r"backbone\.bottom_up\.res(\d)\.(\d+)\.shortcut\.(\w+)",
        lambda found: f"{_stage(found)}downsample.0.{found[3]}",
    ),
    (r"backbone\.bottom_up\.res(\d)\.(\d+)\.(.+)", lambda found: f"{_stage(found)}{found[3]}"),
    (r"backbone\.bottom_up\.(.+)", r"backbone.body.\1"),
)
# in detectron2 every second module of a branch is a ReLU, so convolutions have even numbers
_RETINANET_HEAD: tuple[Rule, ...] = (
    (
        r"head\.cls_subnet\.([0246])\.(\w+)",
        lambda found: f"head.classification_head.conv.{int(found[1]) // 2}.0.{found[2]}",
    ),
    (
        r"head\.bbox_subnet\.([0246])\.(\w+)",
        lambda found: f"head.regression_head.conv.{int(found[1]) // 2}.0.{found[2]}",
    ),
    (r"head\.cls_score\.(\w+)", r"head.classification_head.cls_logits.\1"),
    (r"head\.bbox_pred\.(\w+)", r"head.regression_head.bbox_reg.\1"),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "retinanet": (*_BODY, *_fpn_block(3), *_RETINANET_HEAD),
    "fcos": (*_BODY, *_fpn_block(3)),
    "faster_rcnn": (*_BODY, *_fpn_block(2)),
}
"""Kind of detector -> rules; the first rule that matches a whole key applies."""


def with_torchvision_order(key: str, value: Tensor) -> Tensor:
    """Returns the value with the boxes of a RetinaNet's head in torchvision's order.

    Values of other keys are returned unchanged.
    """
    if not _BY_BOX.match(key) or value.shape[0] % (_SIZES * _RATIOS):
        return value
    by_box = value.reshape(_SIZES, _RATIOS, -1, *value.shape[1:])
    return by_box.transpose(0, 1).reshape(value.shape)
