"""Random batches, padded as in the loader, and networks with other libraries' layer names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class RandomBatch:
    images: Tensor  # uint8 [N, 3, H, W], with noise in the padding too
    image_sizes: list[tuple[int, int]]
    boxes: list[Tensor]
    labels: list[Tensor]

    def as_torchvision_takes_it(self) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        images = [
            image[:, :height, :width].float() / 255
            for image, (height, width) in zip(self.images, self.image_sizes, strict=True)
        ]
        return images, [
            {"boxes": b, "labels": k} for b, k in zip(self.boxes, self.labels, strict=True)
        ]


BatchBuilder = Callable[..., RandomBatch]
"""(image_sizes, num_boxes=..., num_classes=3) -> batch."""
ShowScores = Callable[[Any, float], None]
"""(model, threshold): keeps detections with scores from the threshold on."""


def backward(losses: Mapping[str, Tensor]) -> None:
    """Computes the gradients of the sum of all loss terms."""
    torch.autograd.backward(torch.stack(list(losses.values())).sum())


def set_score_threshold(model: Any, threshold: float) -> None:
    """Makes a model return detections with lower scores than usual."""
    (model.roi_heads if hasattr(model, "roi_heads") else model).score_thresh = threshold


@pytest.fixture
def shows_scores_from() -> ShowScores:
    return set_score_threshold


@pytest.fixture
def random_batch() -> BatchBuilder:
    def build(
        image_sizes: Sequence[tuple[int, int]], *, num_boxes: Sequence[int], num_classes: int = 3
    ) -> RandomBatch:
        draw = torch.Generator().manual_seed(7)
        H, W = (-(-max(sides) // 32) * 32 for sides in zip(*image_sizes, strict=True))
        images = torch.randint(
            0, 256, (len(image_sizes), 3, H, W), dtype=torch.uint8, generator=draw
        )
        boxes, labels = [], []
        for (height, width), count in zip(image_sizes, num_boxes, strict=True):
            scale = torch.tensor([width, height])
            corner = torch.rand(count, 2, generator=draw) * 0.5
            side = 0.1 + torch.rand(count, 2, generator=draw) * 0.4
            boxes.append(torch.cat([corner * scale, (corner + side) * scale], dim=1))
            labels.append(torch.randint(0, num_classes, (count,), generator=draw))
        return RandomBatch(images, list(image_sizes), boxes, labels)

    return build


@dataclass(frozen=True)
class Names:
    """A library's layer names: prefixes of `weight`, `bias` and the statistics."""

    stem: tuple[str, str]
    block: Callable[[int, int], str]
    norm: Callable[[str], str]
    """`conv1`, `conv2` or `conv3` -> name of the normalisation after it."""
    shortcut: tuple[str, str]
    lateral: Callable[[int, int], str]
    """(level, finest level) -> name."""
    output: Callable[[int, int], str]
    extra: tuple[str, str]


MMDETECTION = Names(
    stem=("backbone.conv1", "backbone.bn1"),
    block=lambda stage, block: f"backbone.layer{stage}.{block}",
    norm=lambda conv: conv.replace("conv", "bn"),
    shortcut=("downsample.0", "downsample.1"),
    lateral=lambda level, finest: f"neck.lateral_convs.{level - finest}.conv",
    output=lambda level, finest: f"neck.fpn_convs.{level - finest}.conv",
    extra=("neck.fpn_convs.3.conv", "neck.fpn_convs.4.conv"),
)
DETECTRON2 = Names(
    stem=("backbone.bottom_up.stem.conv1", "backbone.bottom_up.stem.conv1.norm"),
    block=lambda stage, block: f"backbone.bottom_up.res{stage + 1}.{block}",
    norm=lambda conv: f"{conv}.norm",
    shortcut=("shortcut", "shortcut.norm"),
    lateral=lambda level, _: f"backbone.fpn_lateral{level}",
    output=lambda level, _: f"backbone.fpn_output{level}",
    extra=("backbone.top_block.p6", "backbone.top_block.p7"),
)


@dataclass
class ForeignNetwork:
    """A resnet with an FPN in another library's names: random weights and a float64 forward."""

    names: Names
    backbone: str
    finest: int = 3
    """Finest level of the FPN: 3 for RetinaNet and FCOS, 2 for Faster R-CNN."""
    fpn_channels: int = 32
    p6_from: str = "C5"
    p7_relu: bool = True
    first_1x1_strides: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.draw = torch.Generator().manual_seed(5)
        self.blocks = {"resnet18": (2, 2, 2, 2)}.get(self.backbone, (3, 4, 6, 3))
        self.groups = 32 if self.backbone.startswith("resnext") else 1
        expansion = 1 if self.backbone == "resnet18" else 4
        self.conv(self.names.stem[0], 64, 3, 7)
        self.norm(self.names.stem[1], 64)
        width = 64
        for stage, count in enumerate(self.blocks, start=1):
            planes = 64 * 2 ** (stage - 1)
            for block in range(count):
                self.block(
                    self.names.block(stage, block),
                    width,
                    planes,
                    planes * expansion,
                    first=block == 0,
                )
                width = planes * expansion
        for level in range(self.finest, 6):
            self.conv(
                self.names.lateral(level, self.finest),
                self.fpn_channels,
                64 * 2 ** (level - 2) * expansion,
                1,
                bias=True,
            )
            self.conv(
                self.names.output(level, self.finest),
                self.fpn_channels,
                self.fpn_channels,
                3,
                bias=True,
            )
        if self.finest == 3:
            self.conv(
                self.names.extra[0],
                self.fpn_channels,
                512 * expansion if self.p6_from == "C5" else self.fpn_channels,
                3,
                bias=True,
            )
            self.conv(self.names.extra[1], self.fpn_channels, self.fpn_channels, 3, bias=True)

    def conv(self, name: str, num_out: int, num_in: int, side: int, *, bias: bool = False) -> None:
        scale = (2 / (num_in * side**2)) ** 0.5
        self.state[f"{name}.weight"] = (
            torch.randn(num_out, num_in, side, side, generator=self.draw) * scale
        )
        if bias:
            self.state[f"{name}.bias"] = torch.randn(num_out, generator=self.draw) / 2

    def norm(self, name: str, channels: int) -> None:
        for key in ("weight", "running_var"):
            self.state[f"{name}.{key}"] = 0.2 + torch.rand(channels, generator=self.draw)
        # some variances near eps, so that another eps would change the result
        self.state[f"{name}.running_var"][::7] = 3e-5
        self.state[f"{name}.weight"][::7] = 3e-3
        for key in ("bias", "running_mean"):
            self.state[f"{name}.{key}"] = torch.randn(channels, generator=self.draw) / 5

    def block(self, name: str, num_in: int, planes: int, num_out: int, *, first: bool) -> None:
        inner = planes * 2 if self.groups > 1 else planes  # 32 groups of 4 channels for 64 planes
        shapes = [(planes, num_in, 3), (planes, planes, 3)]
        if self.backbone != "resnet18":
            shapes = [(inner, num_in, 1), (inner, inner // self.groups, 3), (num_out, inner, 1)]
        for number, (out, channels, side) in enumerate(shapes, start=1):
            self.conv(f"{name}.conv{number}", out, channels, side)
            self.norm(f"{name}.{self.names.norm(f'conv{number}')}", out)
        if first and num_in != num_out:
            self.conv(f"{name}.{self.names.shortcut[0]}", num_out, num_in, 1)
            self.norm(f"{name}.{self.names.shortcut[1]}", num_out)

    def features(self, pixels: Tensor) -> list[Tensor]:
        """Computes FPN outputs of normalised float64 pixels in the file's channel order."""
        x = self.normed(self.convolved(pixels, self.names.stem[0], 2, 3), self.names.stem[1]).relu()
        x = F.max_pool2d(x, 3, 2, 1)
        stages = {}
        for stage, count in enumerate(self.blocks, start=1):
            for block in range(count):
                x = self.block_output(
                    x, self.names.block(stage, block), 2 if stage > 1 and block == 0 else 1
                )
            stages[stage + 1] = x
        levels, above = {}, None
        for level in reversed(range(self.finest, 6)):
            lateral = self.convolved(stages[level], self.names.lateral(level, self.finest))
            above = (
                lateral
                if above is None
                else lateral + F.interpolate(above, scale_factor=2, mode="nearest")
            )
            levels[level] = self.convolved(above, self.names.output(level, self.finest), 1, 1)
        found = [levels[level] for level in sorted(levels)]
        if self.finest == 2:
            return [*found, found[-1][:, :, ::2, ::2]]
        p6 = self.convolved(
            stages[5] if self.p6_from == "C5" else levels[5], self.names.extra[0], 2, 1
        )
        return [
            *found,
            p6,
            self.convolved(p6.relu() if self.p7_relu else p6, self.names.extra[1], 2, 1),
        ]

    def block_output(self, x: Tensor, name: str, stride: int) -> Tensor:
        strides: tuple[int, ...] = (stride, 1)
        paddings: tuple[int, ...] = (1, 1)
        groups: tuple[int, ...] = (1, 1)
        if self.backbone != "resnet18":
            strides = (stride, 1, 1) if self.first_1x1_strides else (1, stride, 1)
            paddings, groups = (0, 1, 0), (1, self.groups, 1)
        out = x
        for number, (step, padding, num_groups) in enumerate(
            zip(strides, paddings, groups, strict=True), start=1
        ):
            out = out.relu() if number > 1 else out
            out = self.convolved(out, f"{name}.conv{number}", step, padding, num_groups)
            out = self.normed(out, f"{name}.{self.names.norm(f'conv{number}')}")
        shortcut, its_norm = (f"{name}.{part}" for part in self.names.shortcut)
        if f"{shortcut}.weight" in self.state:
            x = self.normed(self.convolved(x, shortcut, stride), its_norm)
        return (out + x).relu()

    def convolved(
        self, x: Tensor, name: str, stride: int = 1, padding: int = 0, groups: int = 1
    ) -> Tensor:
        bias = self.state.get(f"{name}.bias")
        weight = self.state[f"{name}.weight"].double()
        return F.conv2d(
            x, weight, None if bias is None else bias.double(), stride, padding, groups=groups
        )

    def normed(self, x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            self.state[f"{name}.{key}"].double()
            for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


NetworkBuilder = Callable[..., ForeignNetwork]
"""(layout, backbone="resnet18", **settings) -> network."""


@pytest.fixture
def foreign_network() -> NetworkBuilder:
    def build(layout: str, backbone: str = "resnet18", **settings: Any) -> ForeignNetwork:
        return ForeignNetwork(
            {"mmdetection": MMDETECTION, "detectron2": DETECTRON2}[layout], backbone, **settings
        )

    return build
