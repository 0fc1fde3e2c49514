"""A student with its methods: one forward pass returns every loss term of a step."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdr.detectors.detector import Detector
from kdr.distill.cells import grid_of
from kdr.distill.method import Outputs, Term, weighted_sum
from kdr.distill.methods import Methods
from kdr.training.ranks import ALONE, Ranks


class StepLosses(NamedTuple):
    """The loss terms of one step, and the features they were computed from."""

    detection: dict[str, Tensor]
    """The detector's own losses, by name."""
    terms: dict[str, list[Term]]
    """Distillation terms of each method, by the method's name."""
    features: list[Tensor]
    """FPN outputs of the student, finest first."""
    units: dict[str, float]
    """The methods' weights in their common unit for this batch, by `unit.term.level`
    (`kdr.distill.method.Method.units`)."""

    def total(self) -> Tensor:
        """Returns the loss to minimise.

        Without distillation it is exactly the sum of a plain torchvision loop: same terms, same
        order.
        """
        distillation = (weighted_sum(terms) for terms in self.terms.values())
        return _sum((*self.detection.values(), *distillation), self.features[0].device)


class DistilledStudent(nn.Module):
    """The student and its methods as one module, for data-parallel training to wrap.

    DDP averages only the gradients of the wrapped module, so the methods' parameters must be
    inside.

    Args:
        student: the detector to train.
        methods: the distillation methods; empty for plain training.
    """

    def __init__(self, student: Detector, methods: Methods) -> None:
        super().__init__()
        self.student = student
        self.methods = methods

    def forward(
        self,
        pixels: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        teacher: Outputs | None,
        step: int,
        share: tuple[int, int] = (0, 1),
    ) -> StepLosses:
        """Computes every loss term.

        Args:
            pixels: (N, 3, H, W) normalised, padded images.
            image_sizes: (height, width) of each image in pixels, before padding.
            boxes: per image (M, 4) xyxy in pixels of the padded image.
            labels: per image (M,) class indices.
            teacher: the teacher's outputs for the same images; None without distillation.
            step: optimiser steps finished so far, for ramps and random draws.
            share: which images of the step's batch these are (`kdr.distill.method.Method.forward`).
        """
        # one pass through the backbone serves the detector's losses and the methods
        features = self.student.features(pixels)
        detection, class_logits = self.student.losses_and_class_logits(
            features, pixels, image_sizes, boxes, labels
        )
        terms, units = {}, {}
        if teacher is not None:
            batch_size = (pixels.shape[-2], pixels.shape[-1])
            outputs = Outputs(features, class_logits)
            # the padded batch as it is, not the largest image: masks are measured against it
            of_batch: dict[str, Any] = {
                "boxes": boxes,
                "image_sizes": image_sizes,
                "batch_size": batch_size,
            }
            terms = self.methods(outputs, teacher, **of_batch, step=step, share=share)
            units = self.methods.units(
                [grid_of(level) for level in teacher.features], sum(map(len, boxes)) / len(boxes)
            )
        return StepLosses(detection, terms, features, units)


def gradient_norms(
    losses: StepLosses, ranks: Ranks = ALONE, weight: float = 1.0
) -> dict[str, float]:
    """Returns the norms of gradients at the FPN outputs, all levels together.

    The norms are those of the detection loss, of each method, and of their total. The graph is
    kept. Reading the norms waits for the device: call this once per epoch, not in every step.

    Args:
        losses: losses of this rank's share of the batch.
        ranks: the processes that train together. They minimise the mean of their losses, and each
            has its own FPN outputs, so the norm over all is the root of the sum of squares, divided
            by their number.
        weight: weight of these losses in the total; combine the norms of several passes by
            `root_sum_of_squares`.
    """
    parts = {"detection": _sum(losses.detection.values(), losses.features[0].device)}
    parts |= {name: weighted_sum(terms) for name, terms in losses.terms.items()}
    gradients = {name: _gradients(loss, losses.features) for name, loss in parts.items()}
    norms = {name: _norm(of_levels) for name, of_levels in gradients.items()}
    # from the sum of gradients, since norms do not add up
    norms["total"] = _norm(
        [
            sum(of_level, start=torch.zeros_like(of_level[0]))
            for of_level in zip(*gradients.values(), strict=True)
        ]
    )
    if ranks.count > 1:
        norms = {
            name: norm / ranks.count
            for name, norm in root_sum_of_squares(ranks.gathered(norms)).items()
        }
    return {name: weight * norm for name, norm in norms.items()}


def root_sum_of_squares(norms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the norms of gradients from those of their parts over different images."""
    return {name: math.hypot(*(of_part[name] for of_part in norms)) for name in norms[0]}


def _sum(values: Iterable[Tensor], device: torch.device) -> Tensor:
    # from a tensor on the device, so that no values give a tensor too
    return sum(values, start=torch.zeros((), device=device))


def _gradients(loss: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
    if not loss.requires_grad:  # no method, or one whose terms are constants in this batch
        return [torch.zeros_like(level) for level in features]
    found = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(level) if grad is None else grad
        for level, grad in zip(features, found, strict=True)
    ]


def _norm(gradients: Sequence[Tensor]) -> float:
    return float(
        torch.stack([gradient.float().square().sum() for gradient in gradients]).sum().sqrt()
    )
