"""torchvision's resnets and mobilenets with a feature pyramid of any width, P3-P7 or P2-P6."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torchvision.models import mobilenetv3, resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

NormLayer = Callable[..., nn.Module]

_RESNET_STAGES = (("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
# index in `features` of the first block with stride 2, 4, 8, 16 and 32
_MOBILENET_STAGES = {"mobilenet_v3_small": (0, 1, 2, 4, 9), "mobilenet_v3_large": (0, 2, 4, 7, 13)}
_MOBILENET_BN_EPS = 1e-3


def fpn_backbone(
    name: str,
    *,
    channels: int,
    norm: Literal["batch", "frozen"],
    trainable_stages: int,
    p6_from: Literal["P5", "C5", "pool"] = "P5",
    p7_relu: bool = True,
    bottleneck_stride: Literal["3x3", "1x1"] = "3x3",
) -> BackboneWithFPN:
    """Builds a backbone with an FPN.

    The levels have strides 8 to 128, the last two being extra levels; with `pool`, strides 4 to 64,
    the last being extra. Modules and the order of their random draws are those of torchvision's
    builders (of RetinaNet and FCOS with `returned_layers=[2, 3, 4]`), which support only a width of
    256. A mobilenet feeds the FPN from the last block of each stride.

    Args:
        name: torchvision's name, such as `resnet18` or `mobilenet_v3_small`.
        channels: channels of every FPN output.
        norm: `frozen` fixes statistics and affine parameters; use it only if weights are loaded
            afterwards.
        trainable_stages: how many of the five stages are trained, counted from the last.
        p6_from: input of P6; C5 only in torchvision's second RetinaNet; `pool` takes every second
            cell of P5.
        p7_relu: whether P6 passes through a ReLU on its way to P7.
        bottleneck_stride: which convolution of a resnet's bottleneck has the stride; in the
            original resnets it is the first 1x1.

    Returns:
        A module whose outputs are named "0", "1", "2", "p6", "p7", finest first; with `pool` "0",
        "1", "2", "3", "pool".
    """
    build = _mobilenet_body if name.startswith("mobilenet") else _resnet_body
    num_levels = 4 if p6_from == "pool" else 3
    body, return_layers, in_channels = build(name, norm, trainable_stages, num_levels)
    if bottleneck_stride == "1x1":
        _move_strides(body)
    extra: ExtraFPNBlock = LastLevelMaxPool()
    if p6_from != "pool":
        extra = (LastLevelP6P7 if p7_relu else _PlainP6P7)(
            channels if p6_from == "P5" else in_channels[-1], channels
        )
        # torchvision (0.29) guesses use_P5 from equal channels, which is wrong if C5 has as many
        # channels as the FPN. Remove this line once LastLevelP6P7 takes it as an argument.
        extra.use_P5 = p6_from == "P5"
    return BackboneWithFPN(body, return_layers, in_channels, channels, extra_blocks=extra)


class _PlainP6P7(LastLevelP6P7):  # type: ignore[misc]
    """torchvision's extra levels without the ReLU before P7, the default of mmdetection's FPN.

    torchvision (0.29) has no option for this: its forward calls `relu` itself.
    """

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        p6 = self.p6(p[-1] if self.use_P5 else c[-1])
        return [*p, p6, self.p7(p6)], [*names, "p6", "p7"]


def _move_strides(body: nn.Module) -> None:
    """Moves the stride of each bottleneck from its 3x3 to its first 1x1 (He et al. 2015).

    torchvision builds the newer variant, ResNet V1.5, without an option for the original.
    """
    for block in body.modules():
        if isinstance(block, resnet.Bottleneck):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


Body = tuple[nn.Module, dict[str, str], list[int]]
"""A body; layer -> output name, for the layers that feed the FPN; channels of those layers."""


def _resnet_body(name: str, norm: str, trainable_stages: int, num_levels: int) -> Body:
    # Always explicit: torchvision's resnet_fpn_backbone (0.29) freezes batch norm by default even
    # without weights (its detection builders stopped in pytorch/vision#5443). An untrained R101
    # then has features with a std of 3e4.
    body = getattr(resnet, name)(
        weights=None, norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d
    )
    stages = [[getattr(body, part) for part in stage] for stage in _RESNET_STAGES]
    _freeze(part for stage in stages[: 5 - trainable_stages] for part in stage)
    layers = ("layer1", "layer2", "layer3", "layer4")[-num_levels:]
    in_channels = [body.inplanes // 2**halvings for halvings in reversed(range(num_levels))]
    return body, {layer: str(level) for level, layer in enumerate(layers)}, in_channels


def _mobilenet_body(name: str, norm: str, trainable_stages: int, num_levels: int) -> Body:
    # MobileNetV3's batch norm has eps 1e-3, and FrozenBatchNorm2d defaults to 1e-5 (torchvision
    # 0.29): without this, frozen layers would compute other values than the trained layers did
    frozen = partial(FrozenBatchNorm2d, eps=_MOBILENET_BN_EPS)
    features = getattr(mobilenetv3, name)(
        weights=None, norm_layer=frozen if norm == "frozen" else None
    ).features
    starts = (*_MOBILENET_STAGES[name], len(features))
    _freeze(features[: starts[5 - trainable_stages]])
    last_blocks = [start - 1 for start in starts[-num_levels:]]
    names = {str(block): str(level) for level, block in enumerate(last_blocks)}
    return features, names, [features[block].out_channels for block in last_blocks]


def overwrite_frozen_eps(model: nn.Module, eps: float) -> None:
    """Sets the eps of all frozen batch norms.

    torchvision's first COCO weights were trained with eps 0; pytorch/vision#2933 changed the
    default to 1e-5. torchvision's builders correct it only for weights that they load themselves
    (pytorch/vision#2940), and kdr loads weights later.
    """
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = eps


def _freeze(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.requires_grad_(False)
