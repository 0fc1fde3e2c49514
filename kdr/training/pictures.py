"""Draws detections next to the ground truth, and the cells that count as foreground."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from kdr.data.loader import Batch, EvaluationBatches
from kdr.detectors.detector import Detector
from kdr.distill.masks import MaskValues, foreground_mask, padded_boxes, valid_cells
from kdr.storage.files import StoredPath

MIN_SHOWN_PX = 320
"""Smaller images are enlarged to at least this width, so that names are legible."""
MASK_PX = 400
"""Longer side of each panel of the pictures of masks."""


@torch.no_grad()
def write_pictures(
    folder: StoredPath,
    detector: Detector,
    batches: EvaluationBatches,
    *,
    num_pictures: int,
    min_score: float,
) -> int:
    """Writes one JPEG per image: ground truth on the left, detections with scores on the right.

    Args:
        folder: created if missing; files are named by image id.
        detector: the trained detector.
        batches: the images, drawn in this order.
        num_pictures: number of images to draw.
        min_score: lowest score to draw.

    Returns:
        The number of files written.
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
            image = batch.images[index, :, :height, :width]  # without its padding
            sure = found[index]["scores"] >= min_score
            truth = [detector.categories[label] for label in batch.labels[index].tolist()]
            names = [
                f"{detector.categories[label]} {score:.2f}"
                for label, score in zip(
                    found[index]["labels"][sure].tolist(),
                    found[index]["scores"][sure].tolist(),
                    strict=True,
                )
            ]
            left = _drawn(image, batch.boxes[index], truth, "lime")
            right = _drawn(image, found[index]["boxes"][sure].cpu(), names, "orange")
            with (folder / f"{image_id}.jpg").written_aside() as aside:
                Image.fromarray(_side_by_side(left, right).permute(1, 2, 0).numpy()).save(
                    aside, "JPEG", quality=90
                )
            num_written += 1
    return num_written


def write_masks(
    folder: StoredPath, batch: Batch, grids: Mapping[str, tuple[int, int]], *, values: MaskValues
) -> list[StoredPath]:
    """Writes one PNG per image: its boxes, then each level's foreground over the padded image.

    Foreground is red, stronger for weights closer to the image's largest; padding is dark.

    Args:
        folder: created if missing; files are named by image id.
        batch: the images, as a student sees them.
        grids: level name -> (H, W) of its feature map in cells.
        values: weights of foreground cells.

    Returns:
        The files.
    """
    pixels = (batch.images.shape[-2], batch.images.shape[-1])
    size = tuple(max(1, round(side * MASK_PX / max(pixels))) for side in pixels)
    # drawn by the functions that training uses, so that a wrong mask is seen as it would be used
    small = F.interpolate(batch.images.float(), size, mode="bilinear", antialias=True)
    factor = torch.tensor([size[1] / pixels[1], size[0] / pixels[0]] * 2)
    boxes = padded_boxes([found.cpu() for found in batch.boxes])
    images = [
        (
            draw_bounding_boxes(panel, found.cpu() * factor, colors="lime", width=2)
            if len(found)
            else panel
        )
        for panel, found in zip(_framed(small, "image"), batch.boxes, strict=True)
    ]
    panels = [images]
    for name, grid in grids.items():
        valid = valid_cells(batch.image_sizes, pixels, grid, device="cpu")
        mask = foreground_mask(boxes, valid, pixels, values=values)
        panels.append(_framed(_tinted(small, mask, valid), name))
    paths = [folder / f"masks-{image_id}.png" for image_id in batch.image_ids]
    for path, of_image in zip(paths, zip(*panels, strict=True), strict=True):
        with path.written_aside() as aside:
            Image.fromarray(torch.cat(of_image, 2).permute(1, 2, 0).numpy()).save(
                aside, "PNG", compress_level=1
            )
    return paths


def _tinted(images: Tensor, mask: Tensor, valid: Tensor) -> Tensor:
    """Returns images (N, 3, H, W) with the cells of a mask in red and invalid cells dark."""
    largest = mask.amax((1, 2), keepdim=True)
    # at least 0.3: cells of large boxes weigh little under `area`, but must be visible
    redness = torch.where(mask > 0, 0.3 + 0.4 * mask / largest.clamp(min=1e-12), 0)
    redness, light = (
        F.interpolate(cells.float()[:, None], images.shape[-2:], mode="nearest")
        for cells in (redness, valid)
    )
    red = torch.tensor([255.0, 0.0, 0.0])[:, None, None]
    return (images * (1 - redness) + red * redness) * (0.3 + 0.7 * light)


def _framed(images: Tensor, name: str) -> list[Tensor]:
    """Returns the images as panels with a frame and a name."""
    H, W = images.shape[-2:]
    frame = torch.tensor([[0.0, 0.0, W - 1.0, H - 1.0]])
    return [
        draw_bounding_boxes(image.round().byte(), frame, labels=[name], colors="white")
        for image in images
    ]


def _drawn(image: Tensor, boxes: Tensor, names: list[str], colour: str) -> Tensor:
    """Returns a (3, H, W) uint8 copy with boxes and names, enlarged if it is small."""
    factor = max(1, -(-MIN_SHOWN_PX // image.shape[-1]))
    large = image.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    return (
        draw_bounding_boxes(large, boxes * factor, labels=names, colors=colour, width=2)
        if len(boxes)
        else large
    )


def _side_by_side(left: Tensor, right: Tensor) -> Tensor:
    gap = torch.full((3, left.shape[1], 8), 255, dtype=torch.uint8)
    return torch.cat([left, gap, right], 2)
