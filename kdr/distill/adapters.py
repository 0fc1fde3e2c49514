"""Adapters from a student's channels to a teacher's.

Each convolution draws its initial weights from its own generator, so adding or removing one does
not change the others.
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
    """A convolution that changes the number of channels, followed by a norm or with a bias.

    The kind `identity` has no layer at all.

    Args:
        num_in: channels in.
        num_out: channels out.
        kind: `conv1x1`, `conv3x3` or `identity`.
        norm: `none`, `batch` (statistics of this process alone, as in ReviewKD) or `group`.
        init: `dirac` is the identity where channels in = out, else Kaiming uniform with a=1 as in
            ReviewKD; `kaiming` is always the latter; `tiny` starts the output near 0, as in
            DeFeat.
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
        # a norm has its own bias, which makes the convolution's redundant
        conv = blank_conv(num_in, num_out, side, bias=norm == "none")
        generator = torch.Generator().manual_seed(seed)
        if init == "dirac" and num_in == num_out:
            nn.init.dirac_(conv.weight)
        elif init == "tiny":  # DeFeat's: a normal cut at two deviations, times 1e-4
            nn.init.trunc_normal_(conv.weight, std=1e-4, a=-2e-4, b=2e-4, generator=generator)
        else:
            nn.init.kaiming_uniform_(conv.weight, a=1, generator=generator)
        self.add_module("conv", conv)
        if norm == "batch":
            self.add_module("norm", BatchNormOfAnySize(num_out))
        elif norm == "group":
            self.add_module("norm", nn.GroupNorm(_num_groups(num_out), num_out))


class BatchNormOfAnySize(nn.BatchNorm2d):
    """Batch norm that falls back to its running statistics if a channel has a single value.

    That happens with one image at a level of one cell, where torch's own raises "Expected more
    than 1 value per channel when training".
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises (N, C, H, W)."""
        if x.numel() > x.shape[1]:  # shapes are known on the host: no wait for the GPU
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
    """Raises ConfigError, naming the setting, if an identity adapter would change the channels."""
    if kind == "identity" and num_in != num_out:
        raise ConfigError(
            f"{setting}: identity needs equal channels in and out, got {num_in} and {num_out} at "
            f"{level}. Use conv1x1"
        )


def default_conv(num_in: int, num_out: int, side: int = 1, *, seed: int) -> nn.Conv2d:
    """Builds a convolution with torch's default distribution of weights, and a bias of 0."""
    conv = blank_conv(num_in, num_out, side, bias=True)
    # a=sqrt(5) as in nn.Conv2d.reset_parameters
    nn.init.kaiming_uniform_(
        conv.weight, a=math.sqrt(5), generator=torch.Generator().manual_seed(seed)
    )
    return conv


def blank_conv(num_in: int, num_out: int, side: int, *, bias: bool) -> nn.Conv2d:
    """Builds a convolution whose weights are not initialised.

    nn.Conv2d draws weights from torch's global generator, which would shift every later draw of the
    trial. Built on `meta`, it draws nothing.
    """
    conv = nn.Conv2d(num_in, num_out, side, padding=side // 2, bias=bias, device="meta").to_empty(
        device="cpu"
    )
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _num_groups(channels: int) -> int:
    """Returns the largest number of groups, up to 32, that divides the channels into parts of 8 or
    more.
    """
    return max(
        groups for groups in range(1, max(1, min(32, channels // 8)) + 1) if channels % groups == 0
    )
