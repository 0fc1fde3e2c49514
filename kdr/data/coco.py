"""A data set in COCO format as an index in memory: read, checked and counted once, with no image
decoded. Free of torch.
"""

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
    "no_area": "boxes of no area dropped",
    "empty": "images without boxes",
    "greyscale": "greyscale files",
    "cmyk": "CMYK files",
    "palette": "palette files",
    "rgba": "files with transparency",
    "exif": "files turned as their EXIF says",
}

_KINDS = {
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


@dataclass(frozen=True, eq=False)
class CocoIndex:
    """Images, boxes and labels of one annotation file, by position; images are in the order of
    their ids.

    Args:
        image_ids: n image ids of the file.
        paths: n image files.
        sizes: (n, 2) height and width in pixels, as the file says.
        boxes: n arrays (M, 4) float32 of training boxes xyxy, clipped to the image, crowds left
            out.
        labels: n arrays (M,) int64 of labels 0..K-1, the position of the category in `categories`.
        categories: K names, in the order of their ids.
        category_ids: K ids of the file, which need not be contiguous.
        orient: (n,) bool, whether the EXIF orientation is applied when the image is decoded; set by
            `check_images`.
        counts: how often each special case of `summary` was met in the whole file.
        annotations: the annotation file.
        truth: n record arrays of the evaluation's annotations, crowds included and boxes not
            clipped.
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
        """The images at `positions`, in that order. `counts` stay those of the whole file."""
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
        """One line: images, boxes and categories, and how often each special case was met and
        handled in the file.
        """
        handled = [
            f"{self.counts[name]:,} {words}"
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
    """Reads and checks an annotation file; the images themselves are looked at by `check_images`.

    Crowd boxes are no training targets but stay in the evaluation's annotations. Boxes are clipped
    to their image. Boxes of no area, or none inside the image, are dropped everywhere, since no
    detection can match them.

    Args:
        images: the folder that `file_name` is relative to.
        annotations: a JSON file in the format of COCO's instances files.

    Raises:
        DataError: for missing or broken files, missing keys, duplicate ids, and annotations of
            unknown images or categories. It names the file and the ids, up to 20 problems at once.
    """
    content = read_annotation_file(annotations)
    raise_problems(list(annotation_problems(content, annotations)))
    if not images.is_dir():
        raise DataError(
            f"{images}: needs the folder of the images of {annotations}, got no folder. Check the "
            "path"
        )
    coco = _pycocotools_index(content)
    category_ids = tuple(sorted(coco.cats))
    image_ids = sorted(coco.imgs)
    sizes = np.array(
        [[coco.imgs[i]["height"], coco.imgs[i]["width"]] for i in image_ids], dtype=np.int64
    ).reshape(-1, 2)
    # position of each box's image
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
    """The index after a look at every image file: with `orient` set and the kinds of files counted.

    EXIF orientation is applied where that gives the size of the annotation file; where it gives
    another size, the image is taken as it is stored. Orientations that keep the size (a half turn,
    a square image) are applied: viewers show such images turned.

    Args:
        index: as `read_coco` gives it.
        full: decode every image, which finds damage behind a sound header; else only headers are
            read.

    Raises:
        DataError: for images that are missing, damaged, or of another size than the annotation file
            says, with file and id.
    """
    # threads: opening files on a network folder is waiting, and PIL decodes without the interpreter
    # lock
    with ThreadPoolExecutor(max_workers=8) as pool:
        chunks = np.array_split(np.arange(len(index)), math.ceil(len(index) / 64) or 1)
        looks = [
            look
            for chunk in pool.map(
                lambda chunk: [_look(index, int(i), full=full) for i in chunk], chunks
            )
            for look in chunk
        ]
    raise_problems([look.problem for look in looks if look.problem])
    counts = Counter(index.counts)
    counts.update(look.kind for look in looks if look.kind)
    counts["exif"] += sum(look.oriented for look in looks)
    return replace(
        index, orient=np.array([look.oriented for look in looks], dtype=np.bool_), counts=counts
    )


def coco_ground_truth(index: CocoIndex) -> dict[str, Any]:
    """The evaluation's annotations of the images in the index, in COCO's format with the original
    image and category ids.

    Annotation ids are given anew from 1 on: pycocotools counts a box whose id is 0 as never found.

    Returns:
        A dict with `images`, `annotations` (crowds included, boxes xywh as in the file) and
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
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _truth(annotations: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
    """Record array of annotations; an absent area is the box's, as in files that have no
    segmentation.
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
    """Boxes xyxy (M, 4) inside images of (height, width); (M,) whether clipping moved a side; (M,)
    whether area is left.
    """
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    boxes = np.clip(corners, 0, sizes[:, [1, 0, 1, 0]]).astype(np.float32)
    clipped = (np.abs(boxes - corners) > 0.01).any(axis=1)  # less than that is rounding in the file
    return boxes, clipped, (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def _per_image(rows: NDArray[Any], owner: NDArray[np.int64], num_images: int) -> list[NDArray[Any]]:
    """Rows in the order of their images, cut into one array per image."""
    return np.split(rows, np.cumsum(np.bincount(owner, minlength=num_images))[:-1])


@dataclass(frozen=True)
class _Look:
    """What one image file showed: a problem, or its kind (one of `_COUNTED`, empty for RGB) and
    whether it is to be turned.
    """

    problem: str = ""
    kind: str = ""
    oriented: bool = False


def _look(index: CocoIndex, position: int, *, full: bool) -> _Look:
    path, image_id = index.paths[position], index.image_ids[position]
    height, width = (int(value) for value in index.sizes[position])
    name = f"{path}: image {image_id} of {index.annotations.name}"
    try:
        with Image.open(path) as image:
            stored, mode, orientation = image.size, image.mode, _exif_orientation(image)
            if full:
                image.load()
    except FileNotFoundError:
        return _Look(f"{name} must exist, got no such file")
    # PIL's readers raise OSError, SyntaxError, ValueError, struct.error and more on damaged files
    except Exception as error:
        return _Look(f"{name} must be a readable image, got {type(error).__name__}: {error}")
    turned = stored[::-1] if orientation >= 5 else stored
    oriented = orientation != 1 and turned == (width, height)
    if not oriented and stored != (width, height):
        return _Look(
            f"{name} must be {width} x {height} pixels as its annotations say, got {stored[0]} x "
            f"{stored[1]}"
        )
    return _Look(kind=_KINDS.get(mode, ""), oriented=oriented)


def _exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image, 1 where it has none."""
    # getexif() decodes a whole PNG in search of a late chunk; PIL turns TIFF files itself
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    try:
        orientation = image.getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block is no reason to refuse a sound picture
        return 1
    return orientation if orientation in range(1, 9) else 1
