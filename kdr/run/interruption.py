"""Ctrl-C while Ray Tune runs: Tune then ends in good order, but returns as if everything were done."""

import os
import signal
import threading
from types import TracebackType
from typing import Any


class Interruption:
    """Says whether SIGINT came while Ray Tune ran; a context around `Tuner.fit()`.

    Tune 2.60 takes the signal for itself. When it comes, Tune gives back the handler that it found, stops its trials and
    returns. When it never comes, Tune's handler stays, and would swallow a Ctrl-C after the sweep: it is taken away here.
    """

    def __init__(self) -> None:
        self.happened = False
        self._before: Any = None

    def __enter__(self) -> "Interruption":
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"
        self._before = signal.getsignal(signal.SIGINT)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():  # signals are heard in no other
            self.happened = signal.getsignal(signal.SIGINT) is self._before
            signal.signal(signal.SIGINT, self._before)
