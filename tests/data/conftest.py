"""A small COCO data set with every special case of real ones."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Content = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class CocoFolder:
    """Images and an annotation file on disk, with the file's content."""

    images: Path
    annotations: Path
    content: Content

    def rewrite(self, change: Callable[[Content], object]) -> None:
        """Changes the content in place and writes it to the file."""
        change(self.content)
        self.annotations.write_text(json.dumps(self.content))


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Returns a smooth RGB picture, which JPEG changes only a little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.fixture
def awkward(tmp_path: Path) -> CocoFolder:
    images = tmp_path / "images"
    (images / "nested").mkdir(parents=True)
    rgb = picture(40, 60)
    rgb.save(images / "plain.jpg")
    rgb.convert("L").save(images / "grey.jpg")
    rgb.convert("CMYK").save(images / "cmyk.jpg")
    rgb.quantize(16).save(images / "palette.png")
    rgb.convert("RGBA").save(images / "nested" / "transparent.png")
    rgb.save(images / "turned.jpg", exif=exif(6))
    rgb.save(images / "not_turned.jpg", exif=exif(6))
    Image.fromarray(np.asarray(rgb)[..., 0].astype(np.uint16) * 257).save(images / "deep.png")
    rgb.save(images / "bitmap.bmp")
    names = {
        11: "plain.jpg",
        5: "grey.jpg",
        12: "cmyk.jpg",
        13: "palette.png",
        14: "nested/transparent.png",
        15: "turned.jpg",
        16: "not_turned.jpg",
        17: "deep.png",
        18: "bitmap.bmp",
    }
    boxes = [
        # image id, category id, x, y, width, height, crowd
        (11, 90, 10, 5, 20, 30, 0),
        (11, 3, -5, -5, 20, 20, 0),
        (11, 3, 50, 30, 40, 40, 0),
        (11, 7, 0, 0, 60, 40, 1),
        (11, 7, 5, 5, 0, 10, 0),
        (11, 7, 70, 5, 10, 10, 0),
        (5, 7, 1.5, 2.25, 10, 10, 0),
        (12, 3, 10, 10, 10, 10, 0),
        (13, 3, 10, 10, 10, 10, 0),
        (15, 90, 5, 45, 30, 10, 0),
        (16, 90, 45, 5, 10, 30, 0),
        (17, 3, 10, 10, 10, 10, 0),
        (18, 3, 10, 10, 10, 10, 0),
    ]
    content: Content = {
        "images": [
            {
                "id": i,
                "file_name": name,
                "width": 40 if i == 15 else 60,
                "height": 60 if i == 15 else 40,
            }
            for i, name in names.items()
        ],
        "annotations": [
            {
                "id": 100 + n,
                "image_id": i,
                "category_id": k,
                "bbox": box,
                "area": box[2] * box[3] / 2,
                "iscrowd": crowd,
            }
            for n, (i, k, *box, crowd) in enumerate(boxes)
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 3, "name": "car"},
            {"id": 7, "name": "train"},
        ],
    }
    folder = CocoFolder(images, tmp_path / "instances.json", content)
    folder.rewrite(lambda _: None)
    return folder
