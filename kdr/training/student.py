"""A trained student outside of training: images in, boxes out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdr.config.data import Resize
from kdr.config.problems import validated
from kdr.config.trial import Trial
from kdr.data.loader import padded_batch
from kdr.data.transforms import EvalTransform
from kdr.detectors.checkpoint_files import open_student
from kdr.detectors.detector import Detector
from kdr.detectors.identity import weights_file
from kdr.detectors.sidecar import read_sidecar
from kdr.errors import ShapeMismatchError


@dataclass(frozen=True)
class Detections:
    """A student's detections in one image, highest score first."""

    boxes_xyxy: Tensor
    """(M, 4) float32, in pixels of the given image."""
    scores: Tensor
    """(M,) float32 in [0, 1]."""
    labels: Tensor
    """(M,) int64; label k is `Student.categories[k]`."""
    names: tuple[str, ...]
    """Names of the M classes."""


class Student:
    """A trained detector with the resizing of its trial.

    Args:
        detector: the trained detector; put into evaluation mode.
        resize: how its trial resized images; None keeps their size.
    """

    def __init__(self, detector: Detector, resize: Resize | None) -> None:
        self.detector = detector.eval()
        self.categories = detector.categories
        self._transform = EvalTransform(resize)
        self._square_px = resize.square_px if resize else None

    @property
    def model(self) -> nn.Module:
        """Torchvision's own model. It resizes and labels as torchvision does, not as the trial
        does.
        """
        return self.detector.model

    def to(self, device: torch.device | str) -> "Student":
        """Moves the weights to a device, and returns the student."""
        self.detector.to(device)
        return self

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor], *, min_score: float = 0.05) -> list[Detections]:
        """Returns the detections in each image, resized and padded as in an evaluation.

        Args:
            images: uint8 RGB (3, H, W) each, of any sizes, on the CPU.
            min_score: lowest score to return.

        Raises:
            ShapeMismatchError: if an image has a different type or shape.
        """
        if not images:
            return []
        for index, image in enumerate(images):
            if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
                raise ShapeMismatchError(
                    f"images[{index}]: must be uint8 (3, H, W), got {image.dtype} "
                    f"{tuple(image.shape)}"
                )
        nothing = (
            torch.zeros(0, 4),
            torch.zeros(0, dtype=torch.int64),
        )  # the transform expects boxes
        resized = [self._transform(image, *nothing)[0] for image in images]
        batch, sizes = padded_batch(resized, square_px=self._square_px)
        pixels = self.detector.pixels(batch.to(self.detector.mean.device), sizes)
        found = self.detector.detections(self.detector.features(pixels), pixels, sizes)
        return [
            self._in_image(one, image, size, min_score)
            for one, image, size in zip(found, images, sizes, strict=True)
        ]

    def _in_image(
        self, found: dict[str, Tensor], image: Tensor, size: tuple[int, int], min_score: float
    ) -> Detections:
        order = found["scores"].argsort(descending=True, stable=True)
        order = order[found["scores"][order] >= min_score]
        height, width = image.shape[-2:]
        # from the resized image back to the given one
        scale = torch.tensor([width / size[1], height / size[0]] * 2)
        labels = found["labels"][order].cpu()
        return Detections(
            boxes_xyxy=found["boxes"][order].cpu() * scale,
            scores=found["scores"][order].cpu(),
            labels=labels,
            names=tuple(self.categories[label] for label in labels.tolist()),
        )


def load_student(path: str | Path) -> Student:
    """Returns a trained student, on the CPU.

    Args:
        path: `student.pt` as a trial saves it, next to its `student.json`; or the folder of both.

    Raises:
        WeightsError: if the files are missing or damaged, or do not belong together.
    """
    path = Path(path)
    weights = weights_file(str(path / "student.pt" if path.is_dir() else path))
    resize = read_sidecar(weights).extra.get("resize")
    # students of kdr 0.1 do not say how they were resized: their images keep their size
    return Student(open_student(weights), validated(Resize, resize) if resize else None)


def export_facts(trial: Trial) -> dict[str, Any]:
    """Returns the facts about a trial that are stored with its student, for `load_student`."""
    resize = trial.config.data.resize
    return {"trial": trial.key, "resize": resize.model_dump(mode="json") if resize else None}
