"""Pictures of what a detector finds, beside what is there."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from kdr.data.loader import EvaluationBatches
from kdr.detectors.detector import Detector
from kdr.storage import written_aside

MIN_SHOWN_PX = 320
"""Small images are enlarged to this width, so that names can be read."""


@torch.no_grad()
def write_pictures(folder: Path, detector: Detector, batches: EvaluationBatches, *, num_pictures: int, min_score: float) -> int:
    """Writes one JPEG per image: ground truth on the left, predictions with their scores on the right.

    Args:
        folder: is made if missing; files are named by image id.
        detector: the trained detector.
        batches: images in the order in which they are drawn.
        num_pictures: how many images.
        min_score: lowest score that is drawn.

    Returns:
        How many were written.
    """
    device = next(detector.parameters()).device
    detector.eval()
    num_written = 0
    for batch in batches:
        pixels = detector.pixels(batch.images.to(device), batch.image_sizes)
        found = detector.detections(detector.features(pixels), pixels, batch.image_sizes)
        for index, image_id in enumerate(batch.image_ids):
            if num_written == num_pictures:
                return num_written
            height, width = batch.image_sizes[index]
            image = batch.images[index, :, :height, :width]
            sure = found[index]["scores"] >= min_score
            truth = [detector.categories[label] for label in batch.labels[index].tolist()]
            names = [
                f"{detector.categories[label]} {score:.2f}"
                for label, score in zip(found[index]["labels"][sure].tolist(), found[index]["scores"][sure].tolist(), strict=True)
            ]
            left = _drawn(image, batch.boxes[index], truth, "lime")
            right = _drawn(image, found[index]["boxes"][sure].cpu(), names, "orange")
            with written_aside(folder / f"{image_id}.jpg") as aside:
                Image.fromarray(_side_by_side(left, right).permute(1, 2, 0).numpy()).save(aside, "JPEG", quality=90)
            num_written += 1
    return num_written


def _drawn(image: Tensor, boxes: Tensor, names: list[str], colour: str) -> Tensor:
    """A (3, H, W) uint8 copy with boxes and names, enlarged if it is small."""
    factor = max(1, -(-MIN_SHOWN_PX // image.shape[-1]))
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return draw_bounding_boxes(large, boxes * factor, labels=names, colors=colour, width=2) if len(boxes) else large


def _side_by_side(left: Tensor, right: Tensor) -> Tensor:
    gap = torch.full((3, left.shape[1], 8), 255, dtype=torch.uint8)
    return torch.cat([left, gap, right], 2)
