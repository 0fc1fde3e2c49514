"""What every distillation method takes and gives: plain tensors in, named loss terms out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Term(NamedTuple):
    """One distillation loss. A method's loss is the sum of coefficient x value over its terms."""

    name: str
    """Method and part, such as `kdr.foreground`; a column of the log."""
    value: Tensor
    """Scalar, unweighted."""
    coefficient: float
    """Weight of the term at this step."""


@dataclass(frozen=True)
class FeatureLevels:
    """What a method must know of a detector's feature maps when it is built, finest level first."""

    strides: tuple[float, ...]
    """Pixels per cell of each level, as measured on the detector itself."""
    channels: tuple[int, ...]
    """Channels of each level."""


class Method(Protocol):
    """A distillation method: an `nn.Module` that holds what is trained beside the student and not kept after training.

    Weight decay is for its parameters of two or more dimensions: norms, biases and scalars are left alone.
    """

    def __call__(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        step: int,
    ) -> list[Term]:
        """Measures the student's features against the teacher's.

        Args:
            student: (N, C, H, W) for every feature level of the student, finest first.
            teacher: (N, C, H, W) for every feature level of the teacher; no gradient flows into them.
            boxes: (M, 4) xyxy ground-truth boxes of each image in pixels of the padded batch, on the features' device.
            image_sizes: (height, width) of each image in pixels, before padding.
            batch_size: (height, width) of the padded batch in pixels.
            step: optimiser steps taken so far; decides ramps.

        Returns:
            The terms, the same names in the same order in every step.
        """
        ...

    def logged_numbers(self) -> dict[str, Tensor]:
        """Further scalars for the log, once an epoch; none for most methods."""
        ...


def weighted_sum(terms: Sequence[Term]) -> Tensor:
    """The loss of one or more methods: the sum of coefficient x value."""
    return torch.stack([term.coefficient * term.value for term in terms]).sum()
