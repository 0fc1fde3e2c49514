"""The frozen teacher of a trial; it computes only what the methods need."""

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
    """Whether teacher and student normalise in the same way, so that pixels are normalised once."""
    classes: Tensor | None = None
    """Index of each class of the data among the teacher's classes; None if no method needs class
    logits."""

    @torch.no_grad()
    def outputs(self, batch: Batch, student_pixels: Tensor) -> Outputs:
        """Returns the teacher's outputs for a batch.

        Its head runs only if a method needs class logits: it is about 45 % of a RetinaNet-R101's
        forward pass.

        Args:
            batch: the batch, on the teacher's device.
            student_pixels: the batch as the student sees it; the teacher gets the same memory
                format.
        """
        # one tensor for both networks where possible: at 800 x 1344 px, a batch of 16 is 0.2 GB
        pixels = student_pixels
        if not self.shares_pixels:
            pixels = self.detector.pixels(batch.images, batch.image_sizes)
            if student_pixels.is_contiguous(memory_format=torch.channels_last):
                pixels = pixels.contiguous(memory_format=torch.channels_last)
        features = self.detector.features(pixels)
        if self.classes is None:
            return Outputs(features)
        # in the order of the data's classes, whatever label space the teacher was trained with
        return Outputs(
            features,
            [
                logits.index_select(2, self.classes)
                for logits in self.detector.class_logits(features)
            ],
        )
