"""A COCO annotation file as plain JSON, and how the problems of a data set are told: many at once, not only the first."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdr.errors import DataError

_MOST_PROBLEMS = 20


def read_annotation_file(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists `images`, `annotations` and `categories` of a COCO annotation file, each entry a dict, unchecked inside.

    Raises:
        DataError: if the file is missing or unreadable, is no JSON, or lacks one of the lists.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"{path}: needs an annotation file in COCO format, got none ({error.strerror}). Check the path"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: must be JSON, got something else ({error}). The file may be cut off: copy it again") from error
    lists = {}
    for name in ("images", "annotations", "categories"):
        entries = content.get(name) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: needs a list of objects under '{name}', as COCO's instances files have it, got none")
        lists[name] = entries
    return lists


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one DataError that lists the first 20 problems and counts the rest; does nothing if there is none."""
    if not problems:
        return
    lines = list(problems[:_MOST_PROBLEMS])
    if len(problems) > _MOST_PROBLEMS:
        lines.append(f"... and {len(problems) - _MOST_PROBLEMS} more problems of this kind or another")
    raise DataError("\n".join(lines))
