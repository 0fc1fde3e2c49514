"""Adapters from a student's channels to a teacher's: convolutions whose draws are addressed and
shift no other.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdr.errors import ConfigError

AdapterKind = Literal["conv1x1", "conv3x3", "identity"]
AdapterNorm = Literal["none", "batch", "group"]
AdapterInit = Literal["dirac", "kaiming", "tiny"]


class Adapter(nn.Sequential):
    """A convolution from one number of channels to another, with a normalisation or a bias; or
    nothing at all.

    Args:
        num_in: channels in.
        num_out: channels out.
        kind: `conv1x1`, `conv3x3` or `identity`.
        norm: `none`, `batch` (of this process alone, as in ReviewKD) or `group`.
        init: `dirac` where channels in = out, else kaiming uniform with a=1 as in ReviewKD; or
            always `kaiming`; or `tiny`, so that what comes out starts near 0, as in DeFeat.
        seed: seed of the initial weights.
    """

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        kind: AdapterKind,
        norm: AdapterNorm,
        init: AdapterInit,
        seed: int,
    ) -> None:
        super().__init__()
        if kind == "identity":
            return
        side = {"conv1x1": 1, "conv3x3": 3}[kind]
        conv = blank_conv(num_in, num_out, side, bias=norm == "none")
        generator = torch.Generator().manual_seed(seed)
        if init == "dirac" and num_in == num_out:
            nn.init.dirac_(conv.weight)
        elif init == "tiny":
            nn.init.trunc_normal_(conv.weight, std=1e-4, a=-2e-4, b=2e-4, generator=generator)
        else:
            nn.init.kaiming_uniform_(conv.weight, a=1, generator=generator)
        self.add_module("conv", conv)
        if norm == "batch":
            self.add_module("norm", BatchNormOfAnySize(num_out))
        elif norm == "group":
            self.add_module("norm", nn.GroupNorm(_num_groups(num_out), num_out))


class BatchNormOfAnySize(nn.BatchNorm2d):
    """Batch norm that uses its running statistics where a channel has one value: one image at a
    level of one cell.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W)."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )


def refuse_identity(setting: str, kind: AdapterKind, level: str, num_in: int, num_out: int) -> None:
    """Raises ConfigError, naming the setting's path, if an identity adapter would have to change
    the number of channels.
    """
    if kind == "identity" and num_in != num_out:
        raise ConfigError(
            f"{setting}: identity needs equal channels in and out, got {num_in} and {num_out} at "
            f"{level}. Use conv1x1"
        )


def default_conv(num_in: int, num_out: int, side: int = 1, *, seed: int) -> nn.Conv2d:
    """A convolution with the weights that torch would draw by default, and a bias that starts at
    0.
    """
    conv = blank_conv(num_in, num_out, side, bias=True)
    nn.init.kaiming_uniform_(
        conv.weight, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed)
    )
    return conv


def blank_conv(num_in: int, num_out: int, side: int, *, bias: bool) -> nn.Conv2d:
    """A convolution whose weights are still to be set; torch's global generator is not touched."""
    conv = nn.Conv2d(num_in, num_out, side, padding=side // 2, bias=bias, device="meta").to_empty(
        device="cpu"
    )
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _num_groups(channels: int) -> int:
    """At most 32 groups, of at least 8 channels each if there are as many."""
    return max(
        groups for groups in range(1, max(1, min(32, channels // 8)) + 1) if channels % groups == 0
    )
