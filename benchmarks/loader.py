"""Measures images per second of the training loader: kdr against `CocoDetection`.

    python benchmarks/loader.py                # 640 x 480 px to 800 x 1067, and 128 px unresized
    python benchmarks/loader.py --workers 2

Both read the same generated data in COCO format and do the same work: decode each file, resize
image and boxes, flip half of them, clip boxes and drop empty ones, and copy the images into one
padded uint8 batch. The torchvision side follows its documentation:
`wrap_dataset_for_transforms_v2`, `ToImage`, `Resize`, `RandomHorizontalFlip`, `ClampBoundingBoxes`,
`SanitizeBoundingBoxes`, in a shuffling `DataLoader`. The sides alternate epoch by epoch; the first
epoch of each is not counted.

kdr caches the decoded images of small data sets. The large images represent COCO, which does not
fit into the cache, so it is disabled there; for the small images kdr runs with and without it.
"""

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from kdr.config.data import CocoData
from kdr.data import loader
from kdr.data.coco import check_images, read_coco
from kdr.data.loader import TrainingBatches


@dataclass(frozen=True)
class Case:
    """Images of one size, and how they are batched."""

    stored: tuple[int, int]
    """Height and width of the files, in pixels."""
    short_side_px: int
    num_images: int
    batch_size: int


CASES = {"large": Case((480, 640), 800, 32, 4), "small": Case((128, 128), 128, 128, 16)}


def write_data(case: Case, folder: Path) -> tuple[Path, Path]:
    """Writes JPEG files with photograph-like detail and seven boxes each.

    Returns:
        The folder of the images, and the annotation file.
    """
    rng = np.random.default_rng(0)
    height, width = case.stored
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (folder / "images").mkdir(parents=True)
    for image_id in range(1, case.num_images + 1):
        pixels = np.zeros((height, width, 3))
        # noise at four scales, so that files are about as large as JPEGs of photographs
        for cells, strength in ((4, 120), (16, 80), (64, 40), (min(height, width) // 2, 15)):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            pixels += (
                strength
                / 255
                * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
            )
        name = f"{image_id:06d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            folder / "images" / name, quality=90
        )
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        corners, extents = rng.uniform(0, 0.6, (7, 2)), rng.uniform(0.05, 0.4, (7, 2))
        for box in (
            np.concatenate([corners, extents], axis=1) * [width, height, width, height]
        ).tolist():
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": int(rng.integers(1, 81)),
            }
            annotations.append(annotation | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 81)],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "images", folder / "annotations.json"


def by_torchvision(case: Case, images: Path, annotations: Path, workers: int) -> Iterator[float]:
    """Yields torchvision's images per second of each epoch."""
    transforms = [
        v2.ToImage(),
        v2.Resize(case.short_side_px, max_size=1333),
        v2.RandomHorizontalFlip(0.5),
        v2.ClampBoundingBoxes(),
        v2.SanitizeBoundingBoxes(),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = CocoDetection(images, annotations, transforms=v2.Compose(transforms))
    yield from epoch_rates(
        DataLoader(
            wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels")),
            batch_size=case.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=padded,
        )
    )


def padded(
    samples: list[tuple[tv_tensors.Image, dict[str, torch.Tensor]]],
) -> tuple[torch.Tensor, list[Any]]:
    """Collates images into one uint8 batch whose sides are multiples of 32, as kdr does."""
    images = [image for image, _ in samples]
    height, width = (-(-max(image.shape[axis] for image in images) // 32) * 32 for axis in (1, 2))
    batch = torch.zeros(len(images), 3, height, width, dtype=torch.uint8)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch, [target for _, target in samples]


class EveryEpoch:
    """kdr's batches, one epoch per iteration, like a `DataLoader`."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches, self.number = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.number += 1
        return ((batch.images, batch.boxes) for batch in self.batches.epoch(self.number))


def by_kdr(
    case: Case, images: Path, annotations: Path, workers: int, *, cache: bool
) -> Iterator[float]:
    """Yields kdr's images per second of each epoch."""
    files = {"images": str(images), "annotations": str(annotations)}
    data = CocoData.model_validate(
        {
            "dataset": "coco",
            **{
                f"{split}_{name}": path
                for split in ("train", "val")
                for name, path in files.items()
            },
            "resize": {"short_side_px": [case.short_side_px], "long_side_px": 1333},
        }
    )
    index = check_images(read_coco(images, annotations), full=False)
    with contextlib.nullcontext() if cache else mock.patch.object(loader, "_CACHE_BYTES", 0):
        batches = TrainingBatches(
            index, data, seed=0, batch_size=case.batch_size, num_workers=workers
        )
    yield from epoch_rates(EveryEpoch(batches))


def epoch_rates(batches: Any) -> Iterator[float]:
    """Iterates over the batches forever and yields the images per second of each epoch."""
    while True:
        start, count = time.perf_counter(), 0
        for images, _ in batches:
            count += len(images)
        yield count / (time.perf_counter() - start)


def main() -> None:
    """Prints images per second of all sides, and their ratio to torchvision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases",
        nargs="+",
        default=list(CASES),
        choices=list(CASES),
        help="sizes of images to run",
    )
    parser.add_argument("--workers", type=int, default=0, help="loader processes of each side")
    parser.add_argument(
        "--rounds", type=int, default=9, help="measured epochs of each side, at least 2"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as folder:
            given = case, *write_data(case, Path(folder)), arguments.workers
            sides = {"torchvision": by_torchvision(*given), "kdr": by_kdr(*given, cache=False)}
            sides |= {"kdr, cached": by_kdr(*given, cache=True)} if name == "small" else {}
            rates: list[dict[str, float]] = []
            for number in range(arguments.rounds + 1):
                # the order alternates, so that a drift of the machine's speed cancels out
                rates.append(
                    {side: next(sides[side]) for side in (sides if number % 2 else reversed(sides))}
                )
        print(
            f"{case.stored[1]} x {case.stored[0]} px, short side to {case.short_side_px}, "
            f"{arguments.workers} workers"
        )
        for side in sides:
            median = statistics.median(rate[side] for rate in rates[1:])
            ratios = [rate[side] / rate["torchvision"] for rate in rates[1:]]
            low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
            print(
                f"{side:<20}{median:>8.1f} images/s{middle:>8.2f} times torchvision ({low:.2f} to "
                f"{high:.2f})"
            )


if __name__ == "__main__":
    main()
