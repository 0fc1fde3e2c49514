"""Engines: how an actor trains a trial, in its own process or on a gang of workers."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from kdr.config.trial import Trial
from kdr.run.engine.watchdog import Watchdog
from kdr.storage.layout import Storage
from kdr.training.fit import Track, fit, untracked
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts

Epochs = Generator[EpochMetrics, None, None]
"""The epochs of one attempt; closing it stops the training."""


class ProcessLostError(Exception):
    """A process that trained a trial died. The trial can resume from its checkpoint."""


class Engine(Protocol):
    """Trains one trial after another, and keeps the parts that they share."""

    @property
    def where(self) -> Mapping[str, str]:
        """Columns `host` and `device` of the log; empty if trials train in this process."""
        ...

    def fit(self, trial: Trial) -> Epochs:
        """Trains a trial; iterates and raises as `kdr.training.fit.fit` does.

        Raises:
            ProcessLostError: if a process that trained it died.
        """
        ...

    def close(self) -> None:
        """Releases what the engine holds; the engine can be used again."""
        ...


@dataclass
class InlineEngine:
    """Trains in this process."""

    storage: Storage
    loader_workers: int = 0
    """Processes that load images."""
    device: torch.device | None = None
    """Where to train; None: a GPU if there is one."""
    track: Track = untracked
    """Shows progress within an epoch."""
    silence_s: float | None = None
    """Seconds without a batch after which this process ends itself (`kdr.run.engine.watchdog`);
    None: never."""
    where: Mapping[str, str] = field(default_factory=dict)
    """Empty: the log's own columns name this process's host and device."""
    shared: SharedParts = field(init=False)

    def __post_init__(self) -> None:
        self.shared = SharedParts(self.storage)

    def fit(self, trial: Trial) -> Epochs:
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
        """Does nothing: data and teacher stay open until the process ends."""
