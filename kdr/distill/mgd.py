"""MGD: the student's features with cells left out must be enough to generate the teacher's."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdr.config.baselines import MgdConfig
from kdr.distill.adapters import default_conv
from kdr.distill.alignment import AlignedLevels
from kdr.distill.distance import squared_errors
from kdr.distill.levels import matched_levels
from kdr.distill.masks import sent
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.randomness import address


def generation_distance(generated: Tensor, teacher: Tensor) -> Tensor:
    """Sum of squared differences over cells and channels, mean over images.

    Yang et al., "Masked Generative Distillation", ECCV 2022, without its alpha.

    Args:
        generated: (N, C, H, W) what the generator makes of the masked student features.
        teacher: (N, C, H, W) teacher features; no gradient flows into them.
    """
    return squared_errors(generated, teacher).sum() * generated.shape[1] / len(generated)


def kept_cells(
    shape: tuple[int, int, int],
    *,
    masked_share: float,
    seed: int,
    step: int,
    level: str,
    share: tuple[int, int] = (0, 1),
) -> Tensor:
    """Draws the cells of one level that the generator sees in one step, on the host, so that every
    device gets the same.

    The draw is addressed by (seed, "mgd", step, level) and made for the whole batch, of which each
    pass of each process takes its share: resuming, the number of processes and that of passes
    change nothing.

    Args:
        shape: (N, H, W) images of this process and pass, and cells.
        masked_share: probability of a cell to be left out.
        seed: the trial's seed.
        step: optimiser steps taken so far.
        level: name of the level.
        share: (r, R) for the images r, r + R, r + 2R and so on of the batch.

    Returns:
        (N, 1, H, W) bool, True for a cell that is seen.
    """
    num_images, height, width = shape
    first, stride = share
    generator = torch.Generator().manual_seed(address(seed, "mgd", step, level))
    drawn = torch.rand((num_images * stride, 1, height, width), generator=generator)
    return drawn[first::stride] >= masked_share


class Mgd(Method):
    """L = sum_l `generation_distance`( G_l(M * a_l(S_l)), T_l ), with random masks M and generators
    G_l.

    A generator is two 3x3 convolutions with a ReLU between them, into the teacher's channels;
    adapters a_l are 1x1 convolutions where channels differ. The masks of a step are drawn by
    address, see `kept_cells`.

    Args:
        aligned: the levels, adapted.
        masked_share: share of the cells that a generator does not see.
        setup: what the method is built for.
    """

    counts_padding = True

    def __init__(self, aligned: AlignedLevels, *, masked_share: float, setup: Setup) -> None:
        super().__init__()
        self.aligned, self.masked_share = aligned, masked_share
        self._seed = setup.seed
        self.generators = nn.ModuleDict(
            {
                name: _generator(channels, address(setup.seed, "mgd", "generator", name))
                for name, channels in zip(
                    aligned.levels.names, aligned.levels.teacher_channels, strict=True
                )
            }
        )

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        step: int,
        share: tuple[int, int] = (0, 1),
        **_: Any,
    ) -> list[Term]:
        """Returns the term `mgd.feature`. See `Method`."""
        distances = []
        for name, features, target in self.aligned(student, teacher):
            num_images, _, height, width = features.shape
            kept = kept_cells(
                (num_images, height, width),
                masked_share=self.masked_share,
                seed=self._seed,
                step=step,
                level=name,
                share=share,
            )
            generated = self.generators[name](features * sent(kept, features.device))
            distances.append(generation_distance(generated, target))
        return [Term("mgd.feature", torch.stack(distances).sum())]

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Channels times cells of each level, of what the generator makes."""
        levels = self.aligned.levels
        return {
            f"mgd.feature.{name}": channels * math.prod(grids[level])
            for name, channels, (_, level) in zip(
                levels.names, levels.teacher_channels, levels.pairs, strict=True
            )
        }


def build_mgd(settings: MgdConfig, setup: Setup) -> Mgd:
    """Builds the method from its settings.

    Raises:
        ConfigError: if no level matches.
    """
    levels = matched_levels(setup, "mgd").only(settings.levels, "distill.mgd.levels")
    aligned = AlignedLevels("mgd", levels, seed=setup.seed, where_channels_differ=True)
    return Mgd(aligned, masked_share=settings.masked_share, setup=setup)


def _generator(channels: int, seed: int) -> nn.Sequential:
    return nn.Sequential(
        default_conv(channels, channels, 3, seed=address(seed, "first")),
        nn.ReLU(),
        default_conv(channels, channels, 3, seed=address(seed, "second")),
    )
