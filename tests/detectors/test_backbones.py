from typing import get_args

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from kdr.config.detector import BackboneName
from kdr.detectors.backbones import fpn_backbone

ALL = get_args(BackboneName)
# modules without values, for tests of the structure alone
STRUCTURE = torch.device("meta")


def trained_parts(backbone: nn.Module) -> set[str]:
    """Returns the parts of the body with trained parameters, such as `layer4` or `12`."""
    return {
        name.split(".")[0]
        for name, parameter in backbone.get_submodule("body").named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_levels_have_strides_8_to_128_and_the_requested_width(name: str) -> None:
    with STRUCTURE:
        levels = fpn_backbone(name, channels=24, norm="batch", trainable_stages=5)(
            torch.zeros(1, 3, 128, 128)
        )
    assert {key: tuple(level.shape[1:]) for key, level in levels.items()} == {
        "0": (24, 16, 16),
        "1": (24, 8, 8),
        "2": (24, 4, 4),
        "p6": (24, 2, 2),
        "p7": (24, 1, 1),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_levels_for_faster_rcnn_have_strides_4_to_64(name: str) -> None:
    with STRUCTURE:
        backbone = fpn_backbone(name, channels=24, norm="batch", trainable_stages=5, p6_from="pool")
        levels = backbone(torch.zeros(1, 3, 128, 128))
    assert {key: tuple(level.shape[1:]) for key, level in levels.items()} == {
        "0": (24, 32, 32),
        "1": (24, 16, 16),
        "2": (24, 8, 8),
        "3": (24, 4, 4),
        "pool": (24, 2, 2),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALL if "res" in name])
def test_every_resnet_for_faster_rcnn_has_torchvisions_keys(name: str) -> None:
    with STRUCTURE:
        ours = fpn_backbone(name, channels=256, norm="batch", trainable_stages=3, p6_from="pool")
        theirs = resnet_fpn_backbone(
            backbone_name=name, weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=3
        )
    assert trained_parts(ours) == trained_parts(theirs)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.slow
def test_a_resnext_computes_what_torchvisions_does() -> None:
    ours = fpn_backbone(
        "resnext50_32x4d", channels=256, norm="batch", trainable_stages=5, p6_from="pool"
    ).eval()
    theirs = resnet_fpn_backbone(
        backbone_name="resnext50_32x4d",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        trainable_layers=5,
    ).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert all(
        torch.equal(level, other)
        for level, other in zip(ours(images).values(), theirs(images).values(), strict=True)
    )


@pytest.mark.parametrize("trainable_stages", range(6))
def test_resnet_has_torchvisions_keys_and_frozen_stages(trainable_stages: int) -> None:
    with STRUCTURE:
        ours = fpn_backbone(
            "resnet18", channels=256, norm="batch", trainable_stages=trainable_stages
        )
        theirs = resnet_fpn_backbone(
            backbone_name="resnet18",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=trainable_stages,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )
    assert trained_parts(ours) == trained_parts(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize(
    ("trainable_stages", "trained"),
    [
        (0, range(0)),
        (1, range(9, 13)),
        (2, range(4, 13)),
        (3, range(2, 13)),
        (4, range(1, 13)),
        (5, range(13)),
    ],
)
def test_mobilenet_stages_are_counted_from_the_last(trainable_stages: int, trained: range) -> None:
    with STRUCTURE:
        backbone = fpn_backbone(
            "mobilenet_v3_small", channels=8, norm="batch", trainable_stages=trainable_stages
        )
    assert trained_parts(backbone) == {str(block) for block in trained}


def test_mobilenet_feeds_the_fpn_from_the_last_block_of_each_stride() -> None:
    features = mobilenet_v3_small(weights=None).features
    sizes, x = [], torch.zeros(1, 3, 128, 128)
    for block in features.eval():
        x = block(x)
        sizes.append(x.shape[-1])
    last_blocks = [
        max(index for index, size in enumerate(sizes) if size == 128 // stride)
        for stride in (8, 16, 32)
    ]
    backbone = fpn_backbone("mobilenet_v3_small", channels=8, norm="batch", trainable_stages=5)
    assert list(backbone.body.return_layers) == [str(block) for block in last_blocks]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_frozen_norm_computes_what_batch_norm_computes_in_evaluation(name: str) -> None:
    batch = fpn_backbone(name, channels=8, norm="batch", trainable_stages=5)
    frozen = fpn_backbone(name, channels=8, norm="frozen", trainable_stages=5)
    images = torch.randn(2, 3, 64, 64)
    for _ in range(3):  # moves the statistics away from 0 and 1
        batch(images)
    frozen.load_state_dict(batch.state_dict())
    assert any(isinstance(module, FrozenBatchNorm2d) for module in frozen.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in frozen.modules())
    batch.eval()
    for level, other in zip(batch(images).values(), frozen(images).values(), strict=True):
        torch.testing.assert_close(level, other, rtol=1e-4, atol=1e-5)


def test_p6_comes_from_p5_unless_c5_is_requested() -> None:
    with STRUCTURE:
        first, second = (
            fpn_backbone("resnet18", channels=8, norm="batch", trainable_stages=5, p6_from=source)
            for source in ("P5", "C5")
        )
        assert second(torch.zeros(1, 3, 64, 64))["p6"].shape == (1, 8, 1, 1)
    assert (first.fpn.extra_blocks.p6.in_channels, second.fpn.extra_blocks.p6.in_channels) == (
        8,
        512,
    )
