"""How a trial actor trains a trial: in its own process, or on a gang of workers
(`kdr.run.engine.gang`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kdr.config.trial import Trial
from kdr.run.engine.watchdog import Watchdog
from kdr.storage.layout import Storage
from kdr.training.fit import Track, fit, untracked
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts


class ProcessLostError(Exception):
    """A process that trained a trial has died. The trial is not over: it can go on from its
    checkpoint.
    """


class Engine(Protocol):
    """Trains one trial after another, and keeps what they share."""

    @property
    def where(self) -> Mapping[str, Any]:
        """Columns of the log that say where trials are trained, if not in this process: `host` and
        `device`.
        """
        ...

    def fit(self, trial: Trial) -> Iterator[EpochMetrics]:
        """Trains a trial; iterates and raises as `kdr.training.fit.fit` does.

        Raises:
            ProcessLostError: if a process died that trained it.
        """
        ...

    def close(self) -> None:
        """Gives back what the engine holds; it can be used again."""
        ...


@dataclass
class InlineEngine:
    """Trains in this process."""

    storage: Storage
    loader_workers: int = 0
    """Processes that load images."""
    device: torch.device | None = None
    """Where to train; by default a GPU if there is one."""
    track: Track = untracked
    """Shows progress within an epoch."""
    silence_s: float | None = None
    """Seconds without a batch after which this process is ended (`kdr.run.engine.watchdog`); None:
    never."""
    where: Mapping[str, Any] = field(default_factory=dict)
    shared: SharedParts = field(init=False)

    def __post_init__(self) -> None:
        self.shared = SharedParts(self.storage)

    def fit(self, trial: Trial) -> Iterator[EpochMetrics]:
        """Trains a trial."""
        watchdog = (
            None if self.silence_s is None else Watchdog(self.storage, trial.key, self.silence_s)
        )
        epochs = fit(
            trial,
            storage=self.storage,
            shared=self.shared,
            device=self.device,
            loader_workers=self.loader_workers,
            track=self.track if watchdog is None else watchdog.watched(self.track),
        )
        return epochs if watchdog is None else watchdog.over(epochs)

    def close(self) -> None:
        """Nothing: data and teacher stay open until the process ends."""
