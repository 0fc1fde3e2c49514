"""Saves and opens a finished student: a plain torchvision state_dict and its sidecar."""

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
    """Writes a detector's weights to `path` (`student.pt`) and its sidecar next to it (`.json`).

    The state_dict is torchvision's own: `torchvision_model(config,
    num_classes).load_state_dict(torch.load(path))` loads it strictly. Equal weights give equal
    bytes.

    Args:
        path: the weights file.
        detector: the detector, on any device.
        extra: further content of the sidecar, as JSON's own types.

    Raises:
        StorageError: if the files cannot be written.
    """
    state = detector.model.state_dict()
    for name, value in state.items():
        # Not .contiguous(): it leaves a 1x1 convolution from channels_last unchanged, because its
        # strides count as contiguous in both formats (pytorch/pytorch#24090), and the strides are
        # part of the file.
        state[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)

    def write(aside: Path) -> None:
        # into an open file: given a path, torch.save writes the temporary file's random name into
        # every entry of the archive
        with aside.open("wb") as file:
            torch.save(state, file)
        # Written before the weights are renamed into place: after a crash in between, weights
        # without a sidecar would count as saved, but could not be opened.
        write_sidecar(
            path, Sidecar(detector.config, detector.categories, content_id(str(aside)), extra)
        )

    store(path, write)


def open_student(path: Path) -> Detector:
    """Rebuilds a saved detector, on the CPU and in training mode.

    Args:
        path: the weights file, or a folder with a `student.pt`.

    Raises:
        WeightsError: if weights or sidecar are missing or damaged, or do not belong together.
    """
    path = weights_file(str(path / "student.pt" if path.is_dir() else path))
    sidecar = read_sidecar(path)
    state = read_state(str(path))
    # the weights drawn here are overwritten; the caller's generator must not advance
    with torch.random.fork_rng(devices=[]):
        model = torchvision_model(sidecar.detector, len(sidecar.categories))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: does not fit the detector in its sidecar ({error}). Export it again"
        ) from error
    return Detector(sidecar.detector, model, sidecar.categories, KINDS[sidecar.detector.detector])
