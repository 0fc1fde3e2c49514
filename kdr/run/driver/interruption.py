"""Ctrl-C, SIGTERM and SIGHUP: what runs ends in good order, and whoever started it learns that it
did not reach its end.

SIGHUP, of a terminal that was closed, means the same as SIGTERM.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from kdr.run.observer import ignore

_SAME_S = 0.5
"""Within so many seconds a second SIGTERM is the first one again: `timeout` sends it to a process
and to its group."""


class Terminated(BaseException):
    """SIGTERM came, and its grace period is over. Nothing but the command line catches it."""


class RayTerminated(Terminated):
    """SIGTERM came to Ray's own processes, too, so that there was no grace period."""


def end_by_exception() -> None:
    """Ends what runs where it is, as Ctrl-C does."""
    raise Terminated


class GracePeriod:
    """Hears SIGTERM; what runs may go on to a good place to stop, but not for long. A second
    SIGTERM ends it at once.

    Args:
        grace_s: seconds from SIGTERM to `end`; 0 ends at once.
        end: ends what runs; called in the main thread, once.
        on_asked: is told of the first SIGTERM, before anything else.
    """

    def __init__(
        self, grace_s: float, end: Callable[[], None], on_asked: Callable[[], None] = ignore
    ) -> None:
        self.asked = False
        """Whether SIGTERM has come."""
        self._grace_s, self._end, self._has_ended, self._on_asked = grace_s, end, False, on_asked
        self._asked_at = -math.inf
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def end_now(self) -> None:
        """Ends what runs, unless that has been done."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if not self._has_ended:
            self._has_ended = True
            self._end()

    def __enter__(self) -> "GracePeriod":
        if _hears_signals():
            self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
            handlers = {signal.SIGTERM: self._terminate, signal.SIGALRM: lambda *_: self.end_now()}
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as `nohup` wants it
                handlers[signal.SIGHUP] = self._hang_up
            self._before = {
                number: signal.signal(number, handler) for number, handler in handlers.items()
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _terminate(self, *_: Any) -> None:
        if not self.asked:
            self.asked, self._asked_at = True, time.monotonic()
            self._on_asked()
            if self._grace_s > 0:
                signal.setitimer(signal.ITIMER_REAL, self._grace_s)
                return
        if time.monotonic() - self._asked_at >= _SAME_S or not self._grace_s > 0:
            self.end_now()

    def _hang_up(self, *_: Any) -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)  # to print to a closed terminal would be an error
        os.close(nowhere)
        if not self.asked:  # it comes from the terminal and again from its shell
            self._terminate()


class Interruption:
    """Says whether SIGINT or SIGTERM came while Ray Tune ran; a context around `Tuner.fit()`.

    Tune 2.60 takes SIGINT for itself. When it comes, Tune gives back the handler that it found,
    stops its trials and returns. When it never comes, Tune's handler stays, and would swallow a
    Ctrl-C after the sweep: it is taken away here. SIGTERM, of which Tune knows nothing, becomes a
    SIGINT as soon as every running trial has reported once more, or when the grace period is over.

    Args:
        grace_s: seconds from SIGTERM to the end of the trials that run.
        ray_ends: says, when SIGTERM has come, whether it has ended Ray itself, too: then nobody may
            wait for Ray any more.
    """

    def __init__(self, grace_s: float = 0.0, ray_ends: Callable[[], bool] = lambda: False) -> None:
        self.happened = False
        self.ray_has_ended = False
        """Whether SIGTERM has ended Ray, too."""
        self._ray_ends = ray_ends
        self._grace = GracePeriod(
            grace_s, lambda: signal.raise_signal(signal.SIGINT), on_asked=self._look_at_ray
        )
        self._reported: set[str] = set()
        self._before: Any = None

    @property
    def is_ending(self) -> bool:
        """Whether SIGTERM has come: no trial is to start any more."""
        return self._grace.asked

    def end_now(self) -> None:
        """Ends what runs at once, as Ctrl-C does."""
        self._grace.end_now()

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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._grace.__exit__(kind, error, trace)
        if _hears_signals():
            self.happened = self.is_ending or signal.getsignal(signal.SIGINT) is self._before
            signal.signal(signal.SIGINT, self._before)
        if self.is_ending and kind is KeyboardInterrupt:
            raise (RayTerminated if self.ray_has_ended else Terminated) from error

    def _look_at_ray(self) -> None:
        if self._ray_ends():
            self.ray_has_ended = True
            # the one exception of a signal's handler that passes through Ray
            raise KeyboardInterrupt


def _hears_signals() -> bool:
    return threading.current_thread() is threading.main_thread()
