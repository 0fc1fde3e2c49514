"""The interface of every distillation method: plain tensors in, named loss terms out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Outputs(NamedTuple):
    """A detector's outputs for a batch, finest level first."""

    features: Sequence[Tensor]
    """FPN outputs, (N, C, H, W) per level."""
    class_logits: Sequence[Tensor] | None = None
    """(N, A, K, H, W) per level: A boxes per cell, K classes in the order of the data. None if no
    method needs them."""


class Term(NamedTuple):
    """One distillation loss. A method's loss is the sum of coefficient x value over its terms."""

    name: str
    """Method and part, such as `kdr.foreground`: a column of the log."""
    value: Tensor
    """Scalar, unweighted."""
    coefficient: float = 1.0
    """Weight of the term within its method; as returned by `kdr.distill.methods.Methods`, within
    the total loss."""


@dataclass(frozen=True)
class FeatureLevels:
    """Facts about a detector's feature maps that a method needs when it is built, finest level
    first.
    """

    strides: tuple[float, ...]
    """Pixels per cell of each level, measured on the detector itself."""
    channels: tuple[int, ...]
    """Channels of each level."""


@dataclass(frozen=True)
class Setup:
    """The facts about a trial that the builders of its methods need."""

    student: FeatureLevels
    """The student's feature levels."""
    teacher: FeatureLevels
    """The teacher's feature levels."""
    seed: int
    """The trial's seed; each module draws its initial weights from (seed, method, module name)."""
    total_steps: int
    """Optimiser steps of the whole training run."""
    teacher_std: tuple[float, ...] | None = None
    """Standard deviation of each teacher level; None if no method needs `teacher_std`."""


class Method(nn.Module, ABC):
    """A distillation method. Its parameters are trained with the student and dropped afterwards.

    A method returns its terms at weight 1; `kdr.distill.methods.Methods` applies weight, ramp and
    calibration. Weight decay applies to its parameters of two or more dimensions, not to norms,
    biases and scalars.
    """

    counts_padding = False
    """Whether cells that see nothing but padding count, as in the originals of most methods."""

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
        """Compares the student's outputs with the teacher's.

        Args:
            student: outputs of the student; with class logits if the method's settings need
                `student_logits`.
            teacher: outputs of the teacher; with class logits if the settings need
                `teacher_logits`. No gradient flows into them.
            boxes: (M, 4) xyxy ground-truth boxes of each image in pixels of the padded batch, on
                the features' device.
            image_sizes: (height, width) of each image in pixels, before padding.
            batch_size: (height, width) of the padded batch in pixels.
            step: optimiser steps finished so far; part of the address of random draws.
            share: (r, R) for the images r, r + R, r + 2R, ... of the step's batch: those of one
                process in one pass.

        Returns:
            The terms, with the same names in the same order in every step.
        """

    def logged_numbers(self) -> dict[str, Tensor]:
        """Returns additional scalars for the log, once per epoch; none for most methods."""
        return {}

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:  # noqa: ARG002
        """Returns weight 1 of the method in the common unit of all methods.

        The unit is the coefficient of the mean squared feature error over the cells of a term's
        region and all channels, attention aside (docs/method.md, A.0). Terms that are not squared
        errors of features have no unit.

        Args:
            grids: (H, W) of each teacher level, in cells.
            boxes_per_image: mean number of ground-truth boxes.

        Returns:
            Values by term and level, such as `kdr.foreground.P3`.
        """
        return {}


def weighted_sum(terms: Sequence[Term]) -> Tensor:
    """Returns the loss of one or more methods: the sum of coefficient x value."""
    return torch.stack([term.coefficient * term.value for term in terms]).sum()
