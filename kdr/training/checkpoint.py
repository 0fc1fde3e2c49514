"""Checkpoints: a trial's state at the end of an epoch, restored exactly or refused."""

import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from kdr.errors import WeightsError
from kdr.storage.files import StoredPath, store
from kdr.storage.patience import patiently
from kdr.training.metrics import EpochMetrics, Evaluation

CHECKPOINT_VERSION = 1


class Stateful(Protocol):
    """A part of a checkpoint: a module, an optimiser, a schedule, a scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Restores the state."""
        ...


@dataclass(frozen=True)
class Progress:
    """A trial's progress."""

    epoch: int = 0
    """Epochs finished."""
    step: int = 0
    """Optimisation steps finished."""
    images_seen: int = 0
    """Training images since the first epoch."""
    history: tuple[EpochMetrics, ...] = ()
    """Metrics of every finished epoch, so that a resumed trial can report all of them again."""


def save_checkpoint(path: StoredPath, progress: Progress, parts: dict[str, Stateful]) -> None:
    """Writes the state of every part together with the progress.

    The file is written aside and renamed: an interrupted write leaves the previous checkpoint.

    Raises:
        StorageError: if the file cannot be written.
    """
    state = {
        "version": CHECKPOINT_VERSION,
        "progress": asdict(progress),
        "parts": {n: p.state_dict() for n, p in parts.items()},
    }
    store(path, lambda aside: _save(state, aside))


def load_checkpoint(path: StoredPath, parts: dict[str, Stateful]) -> Progress:
    """Restores every part and returns the progress; a missing file is progress 0.

    Raises:
        WeightsError: if the file is damaged, is of another version, or holds anything but tensors
            and plain values.
    """
    if not path.exists():
        return Progress()
    try:
        # weights_only: a storage may be shared, and a pickle can run code
        with path.fetched() as local:
            state = patiently(lambda: torch.load(local, map_location="cpu", weights_only=True))
    except (  # torch.load raises these for truncated, empty and foreign files
        RuntimeError,
        EOFError,
        OSError,
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path}: not a readable checkpoint ({reason}). Remove it to start the trial over"
        ) from error
    found = state.get("version") if isinstance(state, dict) else type(state).__name__
    if found != CHECKPOINT_VERSION:
        raise WeightsError(
            f"{path}: must be a checkpoint of version {CHECKPOINT_VERSION}, got {found}. Remove it "
            "to start the trial over"
        )
    # by this trial's own parts: its settings decide which it has, and are part of its key
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    return Progress(
        **{
            **state["progress"],
            "history": tuple(map(_epoch_metrics, state["progress"]["history"])),
        }
    )


def _save(state: dict[str, Any], path: Path) -> None:
    # Into an open file, whose OSError says why a write failed (disk full, quota). Given a path,
    # torch's own writer raises a RuntimeError without the reason.
    with path.open("wb") as file:
        torch.save(state, file)


def _epoch_metrics(content: dict[str, Any]) -> EpochMetrics:
    evaluation = content["evaluation"]
    return EpochMetrics(
        **{**content, "evaluation": None if evaluation is None else Evaluation(**evaluation)}
    )
