"""What a state_dict does not say: the settings and the class names of a student, in a JSON file
beside its weights.
"""

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
"""The sidecar is beside the weights, under the same name with this suffix."""


@dataclass(frozen=True)
class Sidecar:
    """The content of one sidecar."""

    detector: DetectorConfig
    categories: tuple[str, ...]
    weights_id: str
    """Identity of the weights that it describes, so that a pair that does not belong together is
    noticed."""
    extra: dict[str, Any]
    """What the writer wanted to keep beside the weights."""


def write_sidecar(weights: StoredPath, sidecar: Sidecar) -> None:
    """Writes the sidecar of a weights file.

    Raises:
        StorageError: if it cannot be written.
    """
    content = {
        "format": _FORMAT,
        # a student's or teacher's settings hold more than the detector's; what concerns training is
        # not kept
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
        WeightsError: if it is missing or damaged, or if the weights are not those that it was
            written for.
    """
    path = weights.with_suffix(_SUFFIX)
    content = _read_json(path)
    if content.get("format") != _FORMAT:
        raise WeightsError(
            f"{path}: must be written by kdr (format '{_FORMAT}'), got {content.get('format')!r}. "
            "Export again"
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
            f"{error}. It was written by another version of kdr; export again"
        ) from error
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: must hold detector, categories, weights_id and extra, got {error}. Export "
            "again"
        ) from error
    found = content_id(str(weights))
    if found != sidecar.weights_id:
        raise WeightsError(
            f"{weights}: must be the weights that {path} describes ({sidecar.weights_id}), got "
            f"{found}. Export again"
        )
    return sidecar


def weights_categories(source: str) -> tuple[str, ...] | None:
    """Returns the class names that come with a detector's weights; None where nothing tells them.

    A torchvision enum has the 91 names of its `meta`, of which the first is the background: an
    output like the others in RetinaNet and FCOS, and none of the classes in Faster R-CNN. A student
    of kdr has those of its sidecar.
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
            f"{path}: the sidecar must lie beside the weights, got nothing there. Copy both files"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: must be readable JSON, got {error}. Copy it again from where it was written"
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(
            f"{path}: must be a JSON object, got {type(content).__name__}. Copy it again from "
            "where it was written"
        )
    return content
