"""Fingerprint of a data set: equal for equal images and boxes. Needs neither torch nor numpy."""

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from kdr.data.annotation_file import raise_problems, read_annotation_file
from kdr.errors import DataError
from kdr.storage.layout import Storage

if TYPE_CHECKING:
    from kdr.config.data import CocoData, ShapesData

# here and not in shapes.py, so that `kdr plan` starts without importing numpy
SHAPES_VERSION = 1
"""Increase it whenever `kdr.data.shapes` draws different images from the same settings."""


def data_fingerprint(data: "ShapesData | CocoData", storage: Storage) -> str:
    """Returns the fingerprint of a data set: 20 hexadecimal digits.

    Generated shapes: a hash of the generator's settings and version, without reading a file. COCO:
    a hash of the annotation files' content and of the names and sizes of the images they list. The
    fingerprint does not depend on where the files are stored, nor on resizing, augmentation or
    splits.

    A COCO fingerprint is cached in the storage if the storage is writable. The cache is valid until
    the annotation file (time and size) or a folder of images (time) changes. An image overwritten
    in place changes neither, so the change goes unnoticed until then.

    Raises:
        DataError: if an annotation file is missing or broken, or an image file is missing.
    """
    if data.dataset == "shapes":
        names = ("image_size_px", "num_train", "num_val", "num_classes", "object_size", "seed")
        return _digest({"shapes": SHAPES_VERSION, **{name: getattr(data, name) for name in names}})
    train = _half_fingerprint(Path(data.train_images), Path(data.train_annotations), storage)
    val = _half_fingerprint(Path(data.val_images), Path(data.val_annotations), storage)
    return _digest({"coco": [train, val]})


def _half_fingerprint(images: Path, annotations: Path, storage: Storage) -> str:
    try:
        stat = annotations.stat()
    except OSError as error:
        raise DataError(
            f"{annotations}: cannot read the annotation file ({error.strerror}). Check the path"
        ) from error
    identity = [
        str(annotations.absolute()),
        stat.st_mtime_ns,
        stat.st_size,
        str(images.absolute()),
    ]
    cache = storage.data / "fingerprints" / f"{_digest(identity)}.json"
    cached = _cached(cache)
    if cached is not None:
        return cached
    with annotations.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    sizes, folders = _file_sizes(images, annotations)
    fingerprint = _digest([content, sorted(sizes.items())])
    # a read-only or full storage costs time, but must not fail the plan
    with contextlib.suppress(OSError), cache.written_aside() as aside:
        aside.write_text(json.dumps({"fingerprint": fingerprint, "folders": folders}))
    return fingerprint


def _cached(cache: Path) -> str | None:
    try:
        known = json.loads(cache.read_bytes())
        unchanged = all(
            Path(folder).stat().st_mtime_ns == time for folder, time in known["folders"].items()
        )
        return str(known["fingerprint"]) if unchanged else None
    # without a cache, or with a damaged one, the files are read again
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _file_sizes(images: Path, annotations: Path) -> tuple[dict[str, int], Mapping[str, int]]:
    """Returns the size in bytes of each listed image, and the time of each folder with images."""
    names: dict[str, list[str]] = defaultdict(list)
    for image in read_annotation_file(annotations)["images"]:
        name = image.get("file_name")
        if not isinstance(name, str):
            raise DataError(
                f"{annotations}: image {image.get('id', 'without id')} needs 'file_name' (str), "
                f"got {name!r}"
            )
        names[str(PurePosixPath(name).parent)].append(name)
    sizes, folders, missing = {}, {}, []
    for parent, inside in names.items():
        folder = images / parent
        found = {}
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            os.scandir(folder) as entries,
        ):
            folders[str(folder.absolute())] = folder.stat().st_mtime_ns
            found = {entry.name: entry for entry in entries}
        for name in inside:
            try:
                sizes[name] = found[PurePosixPath(name).name].stat().st_size
            except (KeyError, FileNotFoundError):
                missing.append(f"{images / name}: no such file, but {annotations} lists it")
    raise_problems(missing)
    return sizes, folders


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=10).hexdigest()
