"""Ctrl-C and SIGTERM: what runs ends in good order, and whoever started it learns that it did not reach its end."""

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any


class Terminated(BaseException):
    """SIGTERM came, and its grace period is over. Nothing but the command line catches it."""


def end_by_exception() -> None:
    """Ends what runs where it is, as Ctrl-C does."""
    raise Terminated


class GracePeriod:
    """Hears SIGTERM; what runs may go on to a good place to stop, but not for long. A second SIGTERM ends it at once.

    Args:
        grace_s: seconds from SIGTERM to `end`; 0 ends at once.
        end: ends what runs; called in the main thread, once.
    """

    def __init__(self, grace_s: float, end: Callable[[], None]) -> None:
        self.asked = False
        """Whether SIGTERM has come."""
        self._grace_s, self._end, self._has_ended = grace_s, end, False
        self._before: dict[int, Any] = {}

    def end_now(self) -> None:
        """Ends what runs, unless that has been done."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not self._has_ended:
            self._has_ended = True
            self._end()

    def __enter__(self) -> "GracePeriod":
        if _hears_signals():
            handlers = {signal.SIGTERM: self._terminate, signal.SIGALRM: lambda *_: self.end_now()}
            self._before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _terminate(self, *_: Any) -> None:
        if self.asked or not self._grace_s > 0:
            self.asked = True
            self.end_now()
        else:
            self.asked = True
            signal.setitimer(signal.ITIMER_REAL, self._grace_s)


class Interruption:
    """Says whether SIGINT or SIGTERM came while Ray Tune ran; a context around `Tuner.fit()`.

    Tune 2.60 takes SIGINT for itself. When it comes, Tune gives back the handler that it found, stops its trials and
    returns. When it never comes, Tune's handler stays, and would swallow a Ctrl-C after the sweep: it is taken away here.
    SIGTERM, of which Tune knows nothing, becomes a SIGINT as soon as every running trial has reported once more, or when the
    grace period is over.
    """

    def __init__(self, grace_s: float = 0.0) -> None:
        self.happened = False
        self._grace = GracePeriod(grace_s, lambda: signal.raise_signal(signal.SIGINT))
        self._reported: set[str] = set()
        self._before: Any = None

    @property
    def is_ending(self) -> bool:
        """Whether SIGTERM has come: no trial is to start any more."""
        return self._grace.asked

    def trial_reported(self, trial_id: str, running: Iterable[str]) -> None:
        """A trial has ended an epoch, or itself; `running` are the trials that run now."""
        if self.is_ending:
            self._reported.add(trial_id)
            if self._reported.issuperset(running):
                self._grace.end_now()

    def __enter__(self) -> "Interruption":
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"
        self._before = signal.getsignal(signal.SIGINT)
        self._grace.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._grace.__exit__(kind, error, trace)
        if _hears_signals():
            self.happened = self.is_ending or signal.getsignal(signal.SIGINT) is self._before
            signal.signal(signal.SIGINT, self._before)
        if self.is_ending and kind is KeyboardInterrupt:
            raise Terminated from error  # Tune was not listening yet


def _hears_signals() -> bool:
    return threading.current_thread() is threading.main_thread()
