"""MGD: a generator must produce the teacher's features from randomly masked student features."""

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
    """Returns the sum of squared differences over cells and channels, mean over images.

    Yang et al., "Masked Generative Distillation", ECCV 2022, without alpha (docs/method.md, A.4).

    Args:
        generated: (N, C, H, W) output of the generator for the masked student features.
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
    """Draws the cells of one level that the generator sees in one step.

    The draw is addressed by (seed, "mgd", step, level) and made for the whole batch; each pass of
    each process takes its share. So the masks do not depend on resuming or on the number of
    processes and passes.

    Args:
        shape: (N, H, W): images of this process in this pass, and cells.
        masked_share: probability that a cell is masked.
        seed: the trial's seed.
        step: optimiser steps finished so far.
        level: name of the level.
        share: (r, R) for the images r, r + R, r + 2R, ... of the batch.

    Returns:
        (N, 1, H, W) bool on the host, True for a visible cell.
    """
    num_images, height, width = shape
    first, stride = share
    # on the host: the same seed draws other numbers on a GPU
    generator = torch.Generator().manual_seed(address(seed, "mgd", step, level))
    # the whole batch on every process: 1 MB for 16 images at P3 of COCO, and no communication
    drawn = torch.rand((num_images * stride, 1, height, width), generator=generator)
    return drawn[first::stride] >= masked_share


class Mgd(Method):
    """L = sum_l `generation_distance`( G_l(M * a_l(S_l)), T_l ), with random masks M.

    A generator G_l is two 3x3 convolutions with a ReLU between them, in the teacher's channels.
    Adapters a_l are 1x1 convolutions where channels differ. See `kept_cells` for the masks.

    Args:
        aligned: the levels, adapted.
        masked_share: share of the cells that are masked.
        setup: the detectors and the seed.
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
            # resized by `aligned`, so the mask has the teacher's cells
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
        """Returns channels x cells of each level: the loss is a sum over both."""
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
