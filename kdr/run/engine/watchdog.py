"""Ends a process whose trial hangs, so that Tune retries the trial from its checkpoint.

The timer is the interpreter's own (`faulthandler.dump_traceback_later`). It waits in a C thread
without the GIL, so it fires even where the process hangs in a C extension, and it writes the stack
of every thread before it ends the process.
"""

import faulthandler
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import TextIO

from kdr.data.loader import Batch
from kdr.storage.layout import Storage
from kdr.training.fit import Track
from kdr.training.metrics import EpochMetrics

_RESET_EVERY_S = 1.0
"""The timer is reset at most this often: each reset starts a thread."""


@dataclass
class Watchdog:
    """Watches a trial in this process, one trial at a time.

    Args:
        storage: the storage with the trial's folder.
        key: the trial's key.
        limit_s: longest time between two batches.
        rank: rank of this process among those that train the trial.
    """

    storage: Storage
    key: str
    limit_s: float
    rank: int = 0
    _file: TextIO | None = field(default=None, init=False)
    _set_at: float = field(default=0.0, init=False)

    def over(
        self, epochs: Generator[EpochMetrics, None, None]
    ) -> Generator[EpochMetrics, None, None]:
        """Yields the epochs of a trial. The timer runs while the trial trains, and is off while the
        caller handles an epoch.
        """
        path = self.storage.hang(self.key, self.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as self._file:
            try:
                while True:
                    self._set()
                    metrics = next(epochs, None)
                    faulthandler.cancel_dump_traceback_later()
                    if metrics is None:
                        break
                    yield metrics
            finally:
                faulthandler.cancel_dump_traceback_later()
                path.unlink(missing_ok=True)
                epochs.close()

    def watched(self, track: Track) -> Track:
        """Returns a `Track` that resets the timer at each batch and shows progress as before."""

        def noted(batches: Iterable[Batch], count: int, purpose: str) -> Iterable[Batch]:
            for batch in track(batches, count, purpose):
                # a limit below 10 s, as in tests, needs more frequent resets
                if time.monotonic() - self._set_at >= min(_RESET_EVERY_S, self.limit_s / 10):
                    self._set()
                yield batch

        return noted

    def _set(self) -> None:
        assert self._file is not None
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self._file)


def hang_of(storage: Storage, key: str) -> str | None:
    """Returns the stacks of a trial's processes when the watchdog ended them; None if none hung.

    Removes the files, so that the next death of the trial is not taken for a hang.
    """
    found = []
    for path in sorted(storage.hang(key, 0).parent.glob(storage.hang(key, "*").name)):
        found.append(f"{path.stem}:\n{path.read_text(errors='replace').strip()}")
        path.unlink(missing_ok=True)
    # a process that was killed in another way also leaves its file, but an empty one
    texts = [text for text in found if "Timeout" in text]
    return "\n\n".join(texts) or None
