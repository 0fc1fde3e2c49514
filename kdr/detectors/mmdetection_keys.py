"""Translates mmdetection's layer names to torchvision's.

The names are defined in `mmdet/models`: `backbones/resnet.py`, `necks/fpn.py` and
`dense_heads/retina_head.py`. Its resnets have torchvision's names. The head of its RetinaNet
computes the same as torchvision's: nine boxes per cell, sizes within ratios, scores by sigmoid. The
heads of its FCOS and Faster R-CNN differ from torchvision's and are not loaded.
"""

from kdr.detectors.translation import Rule

MARK = r"neck\.(lateral|fpn)_convs\.\d\.conv\.weight"
"""Pattern of a key that only mmdetection's files have."""

_BODY: tuple[Rule, ...] = ((r"backbone\.(.+)", r"backbone.body.\1"),)
_FPN: tuple[Rule, ...] = (
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn.inner_blocks.\1.0.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn.layer_blocks.\1.0.\2"),
    (r"neck\.(.+)", r"backbone.fpn.\1"),
)
# with three levels from the backbone, the fourth and fifth convolution compute P6 and P7
_EXTRA_LEVELS: tuple[Rule, ...] = (
    (r"neck\.fpn_convs\.3\.conv\.(\w+)", r"backbone.fpn.extra_blocks.p6.\1"),
    (r"neck\.fpn_convs\.4\.conv\.(\w+)", r"backbone.fpn.extra_blocks.p7.\1"),
)
_RETINANET_HEAD: tuple[Rule, ...] = (
    (r"bbox_head\.cls_convs\.(\d)\.conv\.(\w+)", r"head.classification_head.conv.\1.0.\2"),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.(\w+)", r"head.regression_head.conv.\1.0.\2"),
    (r"bbox_head\.retina_cls\.(\w+)", r"head.classification_head.cls_logits.\1"),
    (r"bbox_head\.retina_reg\.(\w+)", r"head.regression_head.bbox_reg.\1"),
)

RULES: dict[str, tuple[Rule, ...]] = {
    "retinanet": (*_BODY, *_EXTRA_LEVELS, *_FPN, *_RETINANET_HEAD),
    "fcos": (*_BODY, *_EXTRA_LEVELS, *_FPN),
    "faster_rcnn": (*_BODY, *_FPN),
}
"""Kind of detector -> rules; the first rule that matches a whole key applies."""
