"""The sidecar: a JSON file next to a student's weights, with its settings and class names."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision.models import get_weight

from kdr.config.detector import DetectorConfig
from kdr.config.problems import validated
from kdr.detectors.identity import DETECTOR_ENUMS, content_id
from kdr.errors import ConfigError, WeightsError
from kdr.storage.files import StoredPath, store

_FORMAT = "kdr student 1"
_SUFFIX = ".json"
"""The sidecar is next to the weights, under the same name with this suffix."""


@dataclass(frozen=True)
class Sidecar:
    """The content of a sidecar."""

    detector: DetectorConfig
    categories: tuple[str, ...]
    weights_id: str
    """Identity of the weights that the sidecar describes, to detect a mismatched pair."""
    extra: dict[str, Any]
    """Further content, chosen by the writer."""


def write_sidecar(weights: StoredPath, sidecar: Sidecar) -> None:
    """Writes the sidecar of a weights file.

    Raises:
        StorageError: if it cannot be written.
    """
    content = {
        "format": _FORMAT,
        # `detector` may be a student's or teacher's settings, which have more fields
        "detector": sidecar.detector.model_dump(
            mode="json", include=set(DetectorConfig.model_fields)
        ),
        "categories": sidecar.categories,
        "weights_id": sidecar.weights_id,
        "extra": sidecar.extra,
    }
    store(
        weights.with_suffix(_SUFFIX), lambda aside: aside.write_text(json.dumps(content, indent=1))
    )


def read_sidecar(weights: Path) -> Sidecar:
    """Reads the sidecar of a weights file and checks that the two belong together.

    Raises:
        WeightsError: if it is missing or damaged, or was written for other weights.
    """
    path = weights.with_suffix(_SUFFIX)
    content = _read_json(path)
    if content.get("format") != _FORMAT:
        raise WeightsError(
            f"{path}: must have the format '{_FORMAT}', got {content.get('format')!r}. Export the "
            "student again"
        )
    try:
        config = validated(DetectorConfig, content["detector"], prefix=f"{path}: detector")
        sidecar = Sidecar(
            config,
            tuple(map(str, content["categories"])),
            str(content["weights_id"]),
            dict(content["extra"]),
        )
    except ConfigError as error:
        raise WeightsError(
            f"{error}. Another version of kdr wrote the file. Export the student again"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: needs detector, categories, weights_id and extra; missing or damaged: "
            f"{error}. Export the student again"
        ) from error
    found = content_id(str(weights))
    if found != sidecar.weights_id:
        raise WeightsError(
            f"{weights}: is {found}, but {path} describes {sidecar.weights_id}. Export the student "
            "again, or copy both files"
        )
    return sidecar


def weights_categories(source: str) -> tuple[str, ...] | None:
    """Returns the class names that come with a detector's weights; None if unknown.

    A torchvision enum has the 91 names of its `meta`, of which the first is the background. For
    RetinaNet and FCOS that is an output like the others; Faster R-CNN does not count it as a class.
    A student of kdr has the names in its sidecar.
    """
    if source in DETECTOR_ENUMS:
        names = tuple(get_weight(source).meta["categories"])
        return names[1:] if source.startswith("FasterRCNN") else names
    try:
        return read_sidecar(Path(source).expanduser()).categories
    except WeightsError:
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: the weights have no sidecar. Copy this file as well, next to the weights"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: cannot read the sidecar ({error}). Copy it again from its source"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: must be a JSON object, got {type(content).__name__}. Copy it again from its "
            "source"
        )
    return content
