"""A COCO annotation file as plain JSON, and what is wrong with it: many problems told at once, not
only the first.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdr.errors import DataError

_MOST_PROBLEMS = 20

_KEYS: dict[str, dict[str, type]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}


def read_annotation_file(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories` of a COCO annotation file, each entry a
    dict, unchecked inside.

    Raises:
        DataError: if the file is missing or unreadable, is no JSON, or lacks one of the lists.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: needs an annotation file in COCO format, got none ({error.strerror}). Check "
            "the path"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{path}: must be JSON, got something else ({error}). The file may be cut off: copy it "
            "again"
        ) from error
    lists = {}
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{path}: needs a list of objects under '{name}', as COCO's instances files have "
                "it, got none"
            )
        lists[name] = entries
    return lists


def annotation_problems(
    content: Mapping[str, Sequence[Mapping[str, Any]]], file: Path
) -> Iterator[str]:
    """What is wrong inside the lists of an annotation file: missing keys, duplicate ids, references
    to nothing, odd numbers.

    Args:
        content: as `read_annotation_file` gives it.
        file: named in every problem.
    """
    ids: dict[str, set[int]] = {}
    for kind, keys in _KEYS.items():
        ids[kind] = set()
        what = {"images": "image", "annotations": "annotation", "categories": "category"}[kind]
        for entry in content[kind]:
            wrong = [key for key, of in keys.items() if type(entry.get(key)) is not of]
            if wrong:
                needed = ", ".join(f"'{key}' ({keys[key].__name__})" for key in wrong)
                got = ", ".join(f"{key}={entry[key]!r}" for key in wrong if key in entry) or "none"
                yield f"{file}: {what} {entry.get('id', 'without id')} needs {needed}, got {got}"
            elif entry["id"] in ids[kind]:
                yield f"{file}: ids of the {kind} must differ, got {what} {entry['id']} twice"
            else:
                ids[kind].add(entry["id"])
    if not content["categories"] or not content["images"]:
        yield f"{file}: needs at least one image and one category, got none"
    names = Counter(str(entry.get("name")) for entry in content["categories"])
    yield from (
        f"{file}: category names must differ, got {name!r} {count} times"
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
                f"{file}: image {image.get('id')} needs a size above 0, got {image['width']} x "
                f"{image['height']}"
            )
    for annotation in content["annotations"]:
        yield from _problems_of_one(annotation, ids, file)


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one DataError that lists the first 20 problems and counts the rest; does nothing if
    there is none.
    """
    if not problems:
        return
    lines = list(problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        lines.append(
            f"... and {len(problems) - _MOST_PROBLEMS} more problems of this kind or another"
        )
    raise DataError("\n".join(lines))


def _problems_of_one(
    annotation: Mapping[str, Any], ids: Mapping[str, set[int]], file: Path
) -> Iterator[str]:
    name = f"{file}: annotation {annotation.get('id')}"
    for key, kind in (("image_id", "images"), ("category_id", "categories")):
        if isinstance(annotation.get(key), int) and annotation[key] not in ids[kind]:
            yield f"{name}: {key} must be one of the {kind} of the file, got {annotation[key]}"
    box, area = annotation.get("bbox"), annotation.get("area", 0)
    if isinstance(box, list) and (len(box) != 4 or not _are_finite(*box)):
        yield f"{name}: bbox needs four finite numbers x, y, width, height, got {box}"
    if not _are_finite(area):
        yield f"{name}: area must be a finite number, got {area!r}"


def _are_finite(*values: Any) -> bool:
    try:
        return math.isfinite(sum(values))
    except TypeError:
        return False
