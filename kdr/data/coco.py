"""Reads and checks a COCO data set into an index in memory. Needs no torch, decodes no image."""

import contextlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from kdr.data.annotation_file import annotation_problems, raise_problems, read_annotation_file
from kdr.errors import DataError

_TRUTH = np.dtype(
    [("category_id", "i8"), ("bbox", "f8", 4), ("area", "f8"), ("iscrowd", "i1"), ("ignore", "i1")]
)

_COUNTED = {
    "crowd": "crowd boxes kept for evaluation only",
    "clipped": "boxes clipped to their image",
    "no_area": "boxes without area dropped",
    "empty": "images without boxes",
    "greyscale": "greyscale files",
    "cmyk": "CMYK files",
    "palette": "palette files",
    "rgba": "files with transparency",
    "exif": "files rotated by their EXIF orientation",
}
"""Special case -> its wording in `CocoIndex.summary`."""

_FILE_KINDS = {
    "1": "greyscale",
    "L": "greyscale",
    "I": "greyscale",
    "I;16": "greyscale",
    "F": "greyscale",
    "CMYK": "cmyk",
} | {
    "P": "palette",
    "PA": "palette",
    "LA": "rgba",
    "RGBA": "rgba",
}
"""PIL's mode -> key of `_COUNTED`; plain RGB has none."""


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images, boxes and labels of one annotation file, sorted by image id.

    Args:
        image_ids: n image ids of the file.
        paths: n image files.
        sizes: (n, 2) height and width in pixels, from the annotation file.
        boxes: n arrays (M, 4) float32 of training boxes xyxy, clipped to the image, without
            crowds.
        labels: n arrays (M,) int64 of labels 0..K-1, positions in `categories`.
        categories: K names, in the order of their ids.
        category_ids: K ids from the file, not necessarily contiguous.
        orient: (n,) bool, whether decoding applies the EXIF orientation; set by `check_images`.
        counts: how often each special case of `summary` occurs in the whole file.
        annotations: path of the annotation file.
        truth: n record arrays of annotations for the evaluation, with crowds and unclipped boxes.
    """

    image_ids: list[int]
    paths: list[Path]
    sizes: NDArray[np.int64]
    boxes: list[NDArray[np.float32]]
    labels: list[NDArray[np.int64]]
    categories: tuple[str, ...]
    category_ids: tuple[int, ...]
    orient: NDArray[np.bool_]
    counts: Mapping[str, int]
    annotations: Path
    truth: list[NDArray[Any]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.image_ids)

    def subset(self, positions: Iterable[int]) -> "CocoIndex":
        """Returns the images at `positions`, in that order. `counts` still describe the whole
        file.
        """
        chosen = [int(position) for position in positions]
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in chosen],
            paths=[self.paths[i] for i in chosen],
            sizes=self.sizes[chosen].reshape(-1, 2),
            boxes=[self.boxes[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            orient=self.orient[chosen],
            truth=[self.truth[i] for i in chosen],
        )

    def summary(self) -> str:
        """Returns one line: numbers of images, boxes, categories, and of each special case."""
        handled = [
            f"{words} ({self.counts[name]:,})"
            for name, words in _COUNTED.items()
            if self.counts.get(name)
        ]
        num_boxes = sum(len(boxes) for boxes in self.boxes)
        line = (
            f"{self.annotations.name}: {len(self):,} images, {num_boxes:,} boxes, "
            f"{len(self.categories)} categories"
        )
        return f"{line}; in the whole file: {', '.join(handled)}" if handled else line


def read_coco(images: Path, annotations: Path) -> CocoIndex:
    """Reads and checks an annotation file; `check_images` checks the image files.

    Crowd boxes are not training targets, but the evaluation keeps them. Training boxes are clipped
    to their image. Boxes without area, or without area inside their image, are dropped everywhere,
    because no detection can match them.

    Args:
        images: the folder that `file_name` is relative to.
        annotations: a JSON file in the format of COCO's instances files.

    Raises:
        DataError: for missing or broken files, missing keys, duplicate ids, and annotations of
            unknown images or categories. Lists up to 20 problems, with file and ids.
    """
    content = read_annotation_file(annotations)
    raise_problems(list(annotation_problems(content, annotations)))
    if not images.is_dir():
        raise DataError(f"{images}: no such image folder (for {annotations}). Check the path")
    coco = _pycocotools_index(content)
    category_ids = tuple(sorted(coco.cats))
    image_ids = sorted(coco.imgs)
    sizes = np.array(
        [[coco.imgs[i]["height"], coco.imgs[i]["width"]] for i in image_ids], dtype=np.int64
    ).reshape(-1, 2)
    # One array holds the boxes of all images, since a loop over COCO's 860,000 is slow. `owner` is
    # the position of each box's image.
    owner = np.repeat(np.arange(len(image_ids)), [len(coco.imgToAnns[i]) for i in image_ids])
    truth = _truth([annotation for i in image_ids for annotation in coco.imgToAnns[i]])
    boxes, clipped, has_area = _clipped_boxes(truth["bbox"], sizes[owner])
    crowd = truth["iscrowd"] != 0
    target = has_area & ~crowd
    labels = np.searchsorted(category_ids, truth["category_id"]).astype(np.int64)
    counts = {
        "crowd": int(crowd.sum()),
        "clipped": int((clipped & target).sum()),
        "no_area": int((~has_area).sum()),
        "empty": len(image_ids) - len(np.unique(owner[target])),
    }
    return CocoIndex(
        image_ids=image_ids,
        paths=[images / coco.imgs[i]["file_name"] for i in image_ids],
        sizes=sizes,
        boxes=_per_image(boxes[target], owner[target], len(image_ids)),
        labels=_per_image(labels[target], owner[target], len(image_ids)),
        categories=tuple(coco.cats[i]["name"] for i in category_ids),
        category_ids=category_ids,
        orient=np.zeros(len(image_ids), dtype=np.bool_),
        counts=counts,
        annotations=annotations,
        truth=_per_image(truth[has_area], owner[has_area], len(image_ids)),
    )


def check_images(index: CocoIndex, *, full: bool) -> CocoIndex:
    """Checks every image file and returns the index with `orient` set and kinds of files counted.

    The EXIF orientation is applied if the rotated image has the size in the annotation file;
    otherwise the image is used as stored. Orientations that keep the size (a half turn, a square
    image) are applied too, because annotation tools show such images rotated.

    Args:
        index: from `read_coco`.
        full: decode every image, which also finds damage behind an intact header; otherwise only
            headers are read.

    Raises:
        DataError: if images are missing, damaged, or differ in size from the annotation file.
    """
    # Threads are enough: opening files on a network folder is mostly waiting, and PIL releases the
    # GIL while it decodes. Chunks of 64 keep the overhead of the futures low.
    with ThreadPoolExecutor(max_workers=8) as pool:
        chunks = np.array_split(np.arange(len(index)), math.ceil(len(index) / 64) or 1)
        checks = [
            check
            for chunk in pool.map(
                lambda chunk: [_checked_file(index, int(i), full=full) for i in chunk], chunks
            )
            for check in chunk
        ]
    raise_problems([check.problem for check in checks if check.problem])
    counts = Counter(index.counts)
    counts.update(check.kind for check in checks if check.kind)
    counts["exif"] += sum(check.oriented for check in checks)
    return replace(
        index, orient=np.array([check.oriented for check in checks], dtype=np.bool_), counts=counts
    )


def coco_ground_truth(index: CocoIndex) -> dict[str, Any]:
    """Returns the annotations for the evaluation in COCO's format, with the file's own image ids.

    Returns:
        A dict with `images`, `annotations` (with crowds, boxes xywh as in the file) and
        `categories`.
    """
    images = [
        {"id": image_id, "file_name": path.name, "height": int(height), "width": int(width)}
        for image_id, path, (height, width) in zip(
            index.image_ids, index.paths, index.sizes, strict=True
        )
    ]
    annotations: list[dict[str, Any]] = []
    for image_id, truth in zip(index.image_ids, index.truth, strict=True):
        for category_id, bbox, area, iscrowd, ignore in truth.tolist():
            annotation = {
                # Ids start at 1. pycocotools (2.0.11) stores the id of the matched box and reads 0
                # as "no match", so a file with id 0 loses a box: cocodataset/cocoapi#664.
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": list(bbox),
            }
            annotations.append(annotation | {"area": area, "iscrowd": iscrowd, "ignore": ignore})
    categories = [
        {"id": i, "name": name}
        for i, name in zip(index.category_ids, index.categories, strict=True)
    ]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _pycocotools_index(content: Mapping[str, Any]) -> COCO:
    coco = COCO()
    coco.dataset = dict(content)
    with contextlib.redirect_stdout(io.StringIO()):  # createIndex prints its progress
        coco.createIndex()
    return coco


def _truth(annotations: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Returns annotations as a record array.

    `area` is optional: without one, as in files without segmentations, it is the box's.
    """
    rows = [
        (
            a["category_id"],
            a["bbox"],
            a.get("area", a["bbox"][2] * a["bbox"][3]),
            bool(a.get("iscrowd")),
            bool(a.get("ignore")),
        )
        for a in annotations
    ]
    return np.array(rows, dtype=_TRUTH)


def _clipped_boxes(
    xywh: NDArray[Any], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]:
    """Clips boxes to their images.

    Args:
        xywh: (M, 4) boxes.
        sizes: (M, 2) height and width of each box's image.

    Returns:
        (M, 4) float32 boxes xyxy; (M,) whether clipping moved a side; (M,) whether any area is
        left.
    """
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = np.clip(corners, 0, sizes[:, [1, 0, 1, 0]]).astype(np.float32)
    # a smaller difference is rounding: COCO's files have two decimals
    clipped = (np.abs(boxes - corners) > 0.01).any(axis=1)
    return boxes, clipped, (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def _per_image(rows: NDArray[Any], owner: NDArray[np.int64], num_images: int) -> list[NDArray[Any]]:
    """Splits rows, sorted by image, into one array per image."""
    return np.split(rows, np.cumsum(np.bincount(owner, minlength=num_images))[:-1])


@dataclass(frozen=True)
class _FileCheck:
    """The result of checking one image file: a problem, or its kind and orientation."""

    problem: str = ""
    kind: str = ""
    """A key of `_COUNTED`, empty for RGB."""
    oriented: bool = False
    """Whether decoding must apply the EXIF orientation."""


def _checked_file(index: CocoIndex, position: int, *, full: bool) -> _FileCheck:
    path, image_id = index.paths[position], index.image_ids[position]
    height, width = (int(value) for value in index.sizes[position])
    name = f"{path}: image {image_id} of {index.annotations.name}"
    try:
        with Image.open(path) as image:
            stored, mode, orientation = image.size, image.mode, _exif_orientation(image)
            if full:
                image.load()
    except FileNotFoundError:
        return _FileCheck(f"{name}: no such file")
    # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more on damaged files
    except Exception as error:
        return _FileCheck(f"{name}: not a readable image ({type(error).__name__}: {error})")
    # orientations 5 to 8 rotate by a quarter turn, so they swap width and height
    rotated = stored[::-1] if orientation >= 5 else stored
    oriented = orientation != 1 and rotated == (width, height)
    if not oriented and stored != (width, height):
        return _FileCheck(
            f"{name}: the file has {stored[0]} x {stored[1]} pixels, its annotations say {width} x "
            f"{height}"
        )
    return _FileCheck(kind=_FILE_KINDS.get(mode, ""), oriented=oriented)


def _exif_orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation 1..8 of an open image; 1 if it has none."""
    # PIL (13) decodes a whole PNG in getexif(), as the chunk may follow the pixels. torchvision
    # ignores such a late chunk. TIFF files are rotated by PIL itself when it decodes them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return 1
    return orientation if orientation in range(1, 9) else 1
