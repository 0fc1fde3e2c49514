"""Reads a COCO annotation file as plain JSON and lists all its problems at once."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdr.errors import DataError

_MAX_PROBLEMS = 20
"""Maximum number of problems to list: more would fill the terminal, and usually have one cause."""

_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


def read_annotation_file(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the lists `images`, `annotations` and `categories` of a COCO annotation file.

    Each entry is a dict. `annotation_problems` checks their content.

    Raises:
        DataError: if the file is missing or unreadable, is not JSON, or lacks one of the lists.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: cannot read the annotation file ({error.strerror}). Check the path"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({error}). If the file is truncated, copy it again"
        ) from error
    lists = {}
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{path}: no list of objects under '{name}'. The file must have the layout of "
                "COCO's instances files"
            )
        lists[name] = entries
    return lists


def annotation_problems(
    content: Mapping[str, Sequence[Mapping[str, Any]]], file: Path
) -> Iterator[str]:
    """Yields every problem inside the lists of an annotation file, one line of text each.

    Problems are missing keys and keys of the wrong type, duplicate ids and category names, ids that
    refer to nothing, image sizes below 1, and boxes or areas that are not finite numbers.

    Args:
        content: from `read_annotation_file`.
        file: path of the file, which starts every line.
    """
    ids: dict[str, set[int]] = {}
    for kind, keys in _KEYS.items():
        ids[kind] = set()
        what = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
        for entry in content[kind]:
            # not isinstance, which accepts true and false as ints
            wrong = [key for key, of in keys.items() if type(entry.get(key)) is not of]
            if wrong:
                needed = ", ".join(f"'{key}' ({keys[key].__name__})" for key in wrong)
                got = ", ".join(f"{key}={entry[key]!r}" for key in wrong if key in entry) or "none"
                yield f"{file}: {what} {entry.get('id', 'without id')} needs {needed}, got {got}"
            elif entry["id"] in ids[kind]:
                yield f"{file}: duplicate {what} id {entry['id']}"
            else:
                ids[kind].add(entry["id"])
    if not content["categories"] or not content["images"]:
        yield f"{file}: needs at least one image and one category"
    names = Counter(str(entry.get("name")) for entry in content["categories"])
    yield from (
        f"{file}: category name {name!r} is used {count} times; names must be unique"
        for name, count in names.items()
        if count > 1
    )
    for image in content["images"]:
        if (
            isinstance(image.get("width"), int)
            and isinstance(image.get("height"), int)
            and min(image["width"], image["height"]) < 1
        ):
            yield (
                f"{file}: image {image.get('id')} needs width and height of at least 1, got "
                f"{image['width']} x {image['height']}"
            )
    for annotation in content["annotations"]:
        yield from _problems_of_one(annotation, ids, file)


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one DataError with the first 20 problems and the number of others; does nothing
    without problems.

    Raises:
        DataError: if there is at least one problem.
    """
    if not problems:
        return
    lines = list(problems[:_MAX_PROBLEMS])
    if len(problems) > _MAX_PROBLEMS:
        lines.append(f"... and {len(problems) - _MAX_PROBLEMS} more problems")
    raise DataError("\n".join(lines))


def _problems_of_one(
    annotation: Mapping[str, Any], ids: Mapping[str, set[int]], file: Path
) -> Iterator[str]:
    name = f"{file}: annotation {annotation.get('id')}"
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if isinstance(annotation.get(key), int) and annotation[key] not in ids[kind]:
            yield f"{name}: no entry of '{kind}' has the {key} {annotation[key]}"
    box, area = annotation.get("bbox"), annotation.get("area", 0)
    if isinstance(box, list) and (len(box) != 4 or not _are_finite(*box)):
        yield f"{name}: bbox must be four finite numbers (x, y, width, height), got {box}"
    if not _are_finite(area):
        yield f"{name}: area must be a finite number, got {area!r}"


def _are_finite(*values: Any) -> bool:
    try:
        # one sum checks all of them: NaN and infinity survive addition, text and None raise
        return math.isfinite(sum(values))
    except TypeError:
        return False
