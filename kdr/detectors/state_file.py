"""Reads the state_dict of a file or torchvision enum, without running code from the file."""

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
    """The content of a weights file."""

    state: dict[str, Tensor]
    """Names -> tensors, on the CPU."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The metadata under `meta` in mmdetection's files."""
    others: tuple[str, ...] = ()
    """Other keys in the file, such as `optimizer`."""


def read_state(source: str) -> dict[str, Tensor]:
    """Returns the state_dict of a source; see `read_state_file`."""
    return read_state_file(source).state


def read_state_file(source: str) -> StateFile:
    """Reads a torchvision enum (downloaded once into torch's cache) or a file.

    The state_dict may be the whole file, or be under `model` or `state_dict`; its keys may have the
    prefix `module.` of a parallel wrapper. Objects of other libraries in the file are ignored, and
    their code is neither needed nor run. A file ending in `.pkl` is a pickle of numpy arrays.

    Raises:
        WeightsError: if the source is missing or unreadable, or contains no tensors.
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
            f"{source}: must contain a state_dict (names -> tensors), at the top level or under "
            f"'model' or 'state_dict', got {type(content).__name__}. Save model.state_dict()"
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
            f"{name}: not in torch's cache, and the download failed ({error}). Download it on a "
            "machine with network access and use the path of the file"
        ) from error
    return found


def _read(path: Path, source: str) -> object:
    if path.suffix == ".pkl":
        return read_array_pickle(path)
    try:
        return _load(path)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"{source}: torch.load(weights_only=True) cannot read it ({_reason(error)}). Save it "
            "with torch.save(model.state_dict(), file) where its library is installed"
        ) from error


def _reason(error: Exception) -> str:
    """Returns the line of an error that names its cause.

    torch's (2.14) refusals have many lines, and advise loading the file with weights_only=False,
    which would run its code.
    """
    text = str(error) or type(error).__name__
    found = re.search(r"(?:WeightsUnpickler error: |\n(?=Trying))(.+?)(?: Please use|\n|$)", text)
    return (found[1] if found else text.splitlines()[0]).rstrip(". ")


def _load(path: Path) -> object:
    """Returns the file's content, with empty stand-ins for objects that torch does not know."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            unknown = get_unsafe_globals_in_checkpoint(path)
        except ValueError:
            raise error from None  # the format before torch 1.6, which torch does not scan
        if not unknown:
            raise
        # torch maps each unknown name to the stand-in instead of importing it, and still refuses
        # blocked modules such as os
        with safe_globals([(_Ignored, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)


class _Ignored:
    """Stands in for any class in a file: accepts all arguments and state, and stores nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...
