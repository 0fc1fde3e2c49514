"""Reads the state_dict of a file, or of a torchvision enum, without running anything that the file
holds.
"""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torchvision.models import get_weight

from kdr.detectors.array_pickle import read_array_pickle
from kdr.detectors.identity import is_enum, weights_file
from kdr.errors import WeightsError


@dataclass(frozen=True)
class StateFile:
    """The content of one file."""

    state: dict[str, Tensor]
    """Names -> tensors, on the CPU."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """What the file tells of itself under `meta`, as mmdetection's do."""
    others: tuple[str, ...] = ()
    """What else is in the file, such as `optimizer`."""


def read_state(source: str) -> dict[str, Tensor]:
    """Returns the state_dict of a source, as `read_state_file` does."""
    return read_state_file(source).state


def read_state_file(source: str) -> StateFile:
    """Reads a torchvision enum (downloaded once into torch's cache) or a file.

    In a file the state_dict may lie under `model` or `state_dict`, and its keys may have the prefix
    `module.` of a parallel wrapper. Objects of other libraries beside it are passed over; no code
    of theirs is needed or run. A file with the ending `.pkl` is a pickle of numpy arrays.

    Raises:
        WeightsError: if it cannot be had or read, or holds no tensors.
    """
    if is_enum(source):
        return StateFile(_downloaded(source))
    content = _read(weights_file(source), source)
    others: list[str] = []
    meta: Mapping[str, Any] = {}
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            others = [str(key) for key in content if key not in (name, "meta")]
            meta = content["meta"] if isinstance(content.get("meta"), Mapping) else {}
            content = content[name]
            break
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(value, Tensor) for value in content.values())
    ):
        raise WeightsError(
            f"{source}: must hold a state_dict (names -> tensors), alone or under 'model' or "
            f"'state_dict', got {type(content).__name__}. Save model.state_dict()"
        )
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return StateFile(
        {str(key).removeprefix(prefix): value for key, value in content.items()},
        meta,
        tuple(others),
    )


def _downloaded(name: str) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = get_weight(name).get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"{name}: must be in torch's cache or come from the network, got {error}. "
            "Download it where there is a network, and name the file"
        ) from error
    return found


def _read(path: Path, source: str) -> object:
    if path.suffix == ".pkl":
        return read_array_pickle(path)
    try:
        return _load(path)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{source}: must be a state_dict that torch.load(weights_only=True) reads, got: "
            f"{_reason(error)} Save it with torch.save(model.state_dict(), file), where what "
            "wrote it is installed"
        ) from error


def _reason(error: Exception) -> str:
    """The first line; of torch's long refusals the one that says what was found, without the advice
    to run it all the same.
    """
    text = str(error) or type(error).__name__
    found = re.search(r"(?:WeightsUnpickler error: |\n(?=Trying))(.+?)(?: Please use|\n|$)", text)
    return found[1] if found else text.splitlines()[0]


def _load(path: Path) -> object:
    """The file's content, objects that torch does not know replaced by ones without content."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            unknown = get_unsafe_globals_in_checkpoint(path)
        except ValueError:
            raise error from None  # a file of torch before 1.6, which is not looked through
        if not unknown:
            raise
        with safe_globals([(_PassedOver, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)


class _PassedOver:
    """Stands in for whatever a file names: takes every argument and state, and keeps nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...
