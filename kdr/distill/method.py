"""What every distillation method takes and gives: plain tensors in, named loss terms out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """What a detector computed from a batch, finest level first."""

    features: Sequence[Tensor]
    """FPN outputs, (N, C, H, W) per level."""
    class_logits: Sequence[Tensor] | None = None
    """(N, A, K, H, W) per level, A boxes per cell, the K classes of the data in their order; None
    where no method needs them."""


class Term(NamedTuple):
    """One distillation loss. A method's loss is the sum of coefficient x value over its terms."""

    name: str
    """Method and part, such as `kdr.foreground`; a column of the log."""
    value: Tensor
    """Scalar, unweighted."""
    coefficient: float = 1.0
    """Weight of the term among those of its method; after `kdr.distill.methods.Methods`, its weight
    in the total loss."""


@dataclass(frozen=True)
class FeatureLevels:
    """What a method must know of a detector's feature maps when it is built, finest level first."""

    strides: tuple[float, ...]
    """Pixels per cell of each level, as measured on the detector itself."""
    channels: tuple[int, ...]
    """Channels of each level."""


@dataclass(frozen=True)
class Setup:
    """What a trial gives the builders of its methods."""

    student: FeatureLevels
    """The student's feature levels."""
    teacher: FeatureLevels
    """The teacher's feature levels."""
    seed: int
    """The trial's seed; each module draws its initial weights from (seed, method, module name)."""
    total_steps: int
    """Optimiser steps of the whole training."""
    teacher_std: tuple[float, ...] | None = None
    """Standard deviation of each of the teacher's levels; None where no method needs
    `teacher_std`."""


class Method(nn.Module, ABC):
    """A distillation method: holds what is trained beside the student and not kept after training.

    Its weight, ramp and calibration are applied by `kdr.distill.methods.Methods`: a method gives
    its terms at weight 1. Weight decay is for its parameters of two or more dimensions: norms,
    biases and scalars are left alone.
    """

    counts_padding = False
    """Whether cells that only see padding count, as they do in the originals of some methods."""

    @abstractmethod
    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        step: int,
        share: tuple[int, int] = (0, 1),
    ) -> list[Term]:
        """Measures what the student computed against what the teacher did.

        Args:
            student: of the student; with class logits if the method's settings need
                `student_logits`.
            teacher: of the teacher; with class logits if they need `teacher_logits`. No gradient
                flows into it.
            boxes: (M, 4) xyxy ground-truth boxes of each image in pixels of the padded batch, on
                the features' device.
            image_sizes: (height, width) of each image in pixels, before padding.
            batch_size: (height, width) of the padded batch in pixels.
            step: optimiser steps taken so far; addresses random draws.
            share: (r, R) for the images r, r + R, r + 2R and so on of the step's batch: what one
                process has in one pass.

        Returns:
            The terms, the same names in the same order in every step.
        """

    def logged_numbers(self) -> dict[str, Tensor]:
        """Further scalars for the log, once an epoch; none for most methods."""
        return {}

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """What weight 1 of the method means in the one unit that methods are compared in.

        That is the coefficient of the mean squared feature error over the cells of a term's region
        and all channels (docs/method.md, A.0), attention aside. A term that is no
        squared error of features has none.

        Args:
            grids: (H, W) of each of the teacher's levels in cells.
            boxes_per_image: ground-truth boxes.

        Returns:
            By term and level, such as `kdr.foreground.P3`.
        """
        return {}


def weighted_sum(terms: Sequence[Term]) -> Tensor:
    """The loss of one or more methods: the sum of coefficient x value."""
    return torch.stack([term.coefficient * term.value for term in terms]).sum()
