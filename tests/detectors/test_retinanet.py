from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models.detection.retinanet import _default_anchorgen
from torchvision.ops import FrozenBatchNorm2d

from kdr.config.detector import DetectorConfig
from kdr.config.problems import validated
from kdr.detectors.build import torchvision_model
from kdr.detectors.retinanet import anchor_generator
from kdr.errors import ConfigError

SMALL: dict[str, Any] = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}


@pytest.mark.parametrize("scale", [None, 4.0])
def test_default_anchors_are_torchvisions(scale: float | None) -> None:
    model: Any = torchvision_model(DetectorConfig(**SMALL, anchor_scale=scale), 3)
    assert model.anchor_generator.sizes == _default_anchorgen().sizes
    assert model.anchor_generator.aspect_ratios == _default_anchorgen().aspect_ratios


def test_smaller_anchors_start_at_their_scale_times_the_stride() -> None:
    assert anchor_generator(2.0).sizes[0] == (16, 20, 25)
    assert anchor_generator(2.0).sizes[-1] == (256, 322, 406)


@given(st.floats(0.25, 64))
def test_every_anchor_has_an_area_at_every_valid_scale(scale: float) -> None:
    for cells in anchor_generator(scale).cell_anchors:
        assert (cells[:, 2:] > cells[:, :2]).all()


def test_a_scale_that_rounds_anchors_away_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^anchor_scale: must be greater than or equal to 0\.25, got 0\.2"
    ):
        validated(DetectorConfig, {"anchor_scale": 0.2})


def test_group_norm_has_32_groups_after_each_head_convolution() -> None:
    model = torchvision_model(
        DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=64, head_norm="group"), 3
    )
    head = model.get_submodule("head")
    norms = [module for module in head.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [32] * 8
    plain = torchvision_model(DetectorConfig(**SMALL, head_norm="none"), 3)
    assert not any(isinstance(module, nn.GroupNorm) for module in plain.modules())


@pytest.mark.parametrize(
    ("weights", "eps"),
    [
        ("RetinaNet_ResNet50_FPN_Weights.COCO_V1", 0.0),
        ("RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1", 1e-5),
        ("some.pt", 1e-5),
    ],
)
def test_frozen_norm_has_eps_0_only_with_torchvisions_first_coco_weights(
    weights: str, eps: float
) -> None:
    with torch.device("meta"):
        model = torchvision_model(
            DetectorConfig(backbone="resnet18", fpn_channels=32, norm="frozen", weights=weights), 3
        )
    frozen = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert {module.eps for module in frozen} == {eps}


def test_there_is_one_logit_per_anchor_and_class() -> None:
    model: Any = torchvision_model(DetectorConfig(**SMALL), 7)
    assert model.head.classification_head.cls_logits.out_channels == 9 * 7
    assert torch.allclose(
        model.head.classification_head.cls_logits.bias.sigmoid(), torch.tensor(0.01)
    )


def test_p6_and_box_loss_follow_the_settings_or_torchvisions_version() -> None:
    second = "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1"
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({}, 32, "l1"),
        ({"p6_from": "C5", "box_loss": "giou"}, 576, "giou"),
        ({"weights": second}, 576, "giou"),
        ({"weights": second, "p6_from": "P5", "box_loss": "l1"}, 32, "l1"),
    ]
    for settings, p6_channels, loss in cases:
        model: Any = torchvision_model(DetectorConfig(**SMALL, **settings), 3)
        assert model.backbone.fpn.extra_blocks.p6.in_channels == p6_channels
        assert model.head.regression_head._loss_type == loss
