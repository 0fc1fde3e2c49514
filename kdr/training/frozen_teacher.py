"""The teacher of a trial, and what it computes for the methods: no more than they ask for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kdr.data.loader import Batch
from kdr.detectors.detector import Detector
from kdr.distill.method import Outputs


@dataclass(frozen=True)
class FrozenTeacher:
    """A detector in evaluation mode, without gradients."""

    detector: Detector
    shares_pixels: bool
    """Whether it normalises as the student does, so that pixels are normalised once."""
    classes: Tensor | None = None
    """Index among its classes of each class of the data; None where no method asks for class
    logits."""

    @torch.no_grad()
    def outputs(self, batch: Batch, student_pixels: Tensor) -> Outputs:
        """What it computes from a batch; its head runs only where class logits are asked for.

        Args:
            batch: on the teacher's device.
            student_pixels: the batch as the student sees it; their memory format is that of the
                teacher's.
        """
        pixels = student_pixels
        if not self.shares_pixels:
            pixels = self.detector.pixels(batch.images, batch.image_sizes)
            if student_pixels.is_contiguous(memory_format=torch.channels_last):
                pixels = pixels.contiguous(memory_format=torch.channels_last)
        features = self.detector.features(pixels)
        if self.classes is None:
            return Outputs(features)
        return Outputs(
            features,
            [
                logits.index_select(2, self.classes)
                for logits in self.detector.class_logits(features)
            ],
        )
