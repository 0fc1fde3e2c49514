"""Ends a process whose trial hangs. Whoever runs the trial sees a process that died; the trial goes
on from its checkpoint.

The timer is the interpreter's own (`faulthandler`): it needs no lock of the interpreter, so that it
goes off whatever the process waits for, and writes what every thread was doing before it ends the
process.
"""

import faulthandler
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO

from kdr.data.loader import Batch
from kdr.storage.layout import Storage
from kdr.training.fit import Track
from kdr.training.metrics import EpochMetrics

_BEAT_S = 1.0
"""The timer is set again at most so often: each time costs a thread."""


@dataclass
class Watchdog:
    """Watches one trial in this process; one at a time.

    Args:
        storage: where the trial's folder lies.
        key: the trial's key.
        limit_s: longest time between two batches.
        rank: of this process among those that train the trial.
    """

    storage: Storage
    key: str
    limit_s: float
    rank: int = 0
    _file: TextIO | None = None
    _set_at: float = field(default=0.0, init=False)

    def over(self, epochs: Iterator[EpochMetrics]) -> Iterator[EpochMetrics]:
        """Passes the epochs of a trial on; the timer runs while the trial does, not while whoever
        asks for epochs thinks.
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
                epochs.close()  # type: ignore[attr-defined]

    def watched(self, track: Track) -> Track:
        """Notes each batch, and shows progress as before."""

        def noted(batches: Iterable[Batch], count: int, purpose: str) -> Iterable[Batch]:
            for batch in track(batches, count, purpose):
                if time.monotonic() - self._set_at >= min(_BEAT_S, self.limit_s / 10):
                    self._set()
                yield batch

        return noted

    def _set(self) -> None:
        assert self._file is not None
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self._file)


def hang_of(storage: Storage, key: str) -> str | None:
    """What a trial's processes were doing when they were ended since it hung; None if it did not.
    It is told once.
    """
    found = []
    for path in sorted(storage.hang(key, 0).parent.glob(storage.hang(key, "*").name)):
        found.append(f"{path.stem}:\n{path.read_text(errors='replace').strip()}")
        path.unlink(missing_ok=True)
    texts = [text for text in found if "Timeout" in text]
    return "\n\n".join(texts) or None
