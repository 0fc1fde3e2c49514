"""A finished student on disk: a plain torchvision state_dict, and the sidecar that says how to
build the model for it.
"""

from pathlib import Path
from typing import Any

import torch

from kdr.detectors.build import KINDS, torchvision_model
from kdr.detectors.detector import Detector
from kdr.detectors.identity import content_id, weights_file
from kdr.detectors.sidecar import Sidecar, read_sidecar, write_sidecar
from kdr.detectors.state_file import read_state
from kdr.errors import WeightsError
from kdr.storage.files import StoredPath, store


def save_student(path: StoredPath, detector: Detector, *, extra: dict[str, Any]) -> None:
    """Writes a detector's weights to `path` (`student.pt`) and its sidecar beside it
    (`student.json`).

    The state_dict is torchvision's own: `torchvision_model(config,
    num_classes).load_state_dict(torch.load(path))` loads it strictly. Equal weights give equal
    bytes.

    Args:
        path: the weights file; the ending `.json` is the sidecar's.
        detector: the detector, on any device.
        extra: what to keep in the sidecar, as JSON can hold it.

    Raises:
        StorageError: if they cannot be written.
    """
    state = detector.model.state_dict()
    for name, value in state.items():
        # a clone, since .contiguous() keeps the odd strides that channels_last leaves on 1x1
        # convolutions
        state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)

    def write(aside: Path) -> None:
        # into an open file: the archive would otherwise carry the temporary file's random name in
        # every entry
        with aside.open("wb") as file:
            torch.save(state, file)
        # before the weights take their place: weights without a sidecar would count as kept, and
        # nobody could open them
        write_sidecar(
            path, Sidecar(detector.config, detector.categories, content_id(str(aside)), extra)
        )

    store(path, write)


def open_student(path: Path) -> Detector:
    """Rebuilds a saved detector, on the CPU and in training mode.

    Args:
        path: the weights file, or the folder that holds it as `student.pt`.

    Raises:
        WeightsError: if the weights or the sidecar are missing or damaged, or do not belong
            together.
    """
    path = weights_file(str(path / "student.pt" if path.is_dir() else path))
    sidecar = read_sidecar(path)
    state = read_state(str(path))
    with torch.random.fork_rng(devices=[]):
        model = torchvision_model(sidecar.detector, len(sidecar.categories))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: must fit the detector that its sidecar describes, got {error}. Export again"
        ) from error
    return Detector(sidecar.detector, model, sidecar.categories, KINDS[sidecar.detector.detector])
