"""Graceful shutdown on Ctrl-C, SIGTERM and SIGHUP, with an exception or flag for the caller.

SIGHUP, from a closed terminal, is handled like SIGTERM.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from kdr.run.observer import ignore

_SAME_S = 0.5
"""A second SIGTERM within this many seconds is a duplicate of the first: `timeout` sends the signal
to the process and then to its group, so the process receives it twice."""


class Terminated(BaseException):
    """SIGTERM was received, and its grace period is over. Only the command line catches this.

    A BaseException, so that no `except Exception` around a trial turns it into a failed trial.
    """


class RayTerminated(Terminated):
    """SIGTERM ended Ray's own processes as well, so there was no grace period."""


def end_by_exception() -> None:
    """Raises Terminated from a signal handler, as Ctrl-C raises KeyboardInterrupt."""
    raise Terminated


class GracePeriod:
    """Handles SIGTERM: the work may continue to a good stopping point, but not for long. A second
    SIGTERM ends it at once.

    Args:
        grace_s: seconds from SIGTERM to `end`; 0 ends at once.
        end: ends the work; called once, in the main thread.
        on_start: called on the first SIGTERM, before anything else.
    """

    def __init__(
        self, grace_s: float, end: Callable[[], None], on_start: Callable[[], None] = ignore
    ) -> None:
        self.has_started = False
        """Whether SIGTERM was received."""
        self._grace_s, self._end, self._has_ended, self._on_start = grace_s, end, False, on_start
        self._started_at = -math.inf
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []

    def end_now(self) -> None:
        """Ends the work, unless it has been ended already."""
        signal.setitimer(signal.ITIMER_REAL, 0)  # no alarm may interrupt the clean-up
        if not self._has_ended:
            self._has_ended = True
            self._end()

    def __enter__(self) -> "GracePeriod":
        if _can_handle_signals():
            # noted now: once the terminal is closed, `isatty` is false for it
            self._terminals = [number for number in (0, 1, 2) if os.isatty(number)]
            # the grace period is a timer and not a thread: a signal handler runs in the main
            # thread, the only one in which `end` can raise or send signals that Tune handles
            handlers = {signal.SIGTERM: self._terminate, signal.SIGALRM: lambda *_: self.end_now()}
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under `nohup`
                handlers[signal.SIGHUP] = self._hang_up
            self._before = {
                number: signal.signal(number, handler) for number, handler in handlers.items()
            }
        return self

    def __exit__(self, *_: object) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            # None stands for a handler that was not installed from Python and cannot be restored
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _terminate(self, *_: Any) -> None:
        if not self.has_started:
            self.has_started, self._started_at = True, time.monotonic()
            self._on_start()
            if self._grace_s > 0:
                signal.setitimer(signal.ITIMER_REAL, self._grace_s)
                return
        if time.monotonic() - self._started_at >= _SAME_S or not self._grace_s > 0:
            self.end_now()

    def _hang_up(self, *_: Any) -> None:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in self._terminals:
            os.dup2(nowhere, number)  # printing to a closed terminal would raise
        os.close(nowhere)
        # the kernel sends SIGHUP and the shell sends it again: the second must not end the grace
        if not self.has_started:
            self._terminate()


class Interruption:
    """Context around `Tuner.fit()` that records whether SIGINT or SIGTERM was received.

    Tune 2.60 installs its own SIGINT handler and does not report that it was interrupted. On SIGINT
    it restores the handler that it found, stops its trials and returns as if all had finished; so
    if the original handler is back, SIGINT was received. Without SIGINT, Tune's handler stays and
    would swallow a Ctrl-C after the sweep; leaving this context removes it. All of this can go once
    `Tuner.fit()` reports an interruption and cleans up its handler.

    Tune does not handle SIGTERM. The signal is passed on as SIGINT once every running trial has
    reported once more, so that no epoch is lost, or the grace period is over.

    Args:
        grace_s: seconds from SIGTERM to the end of the running trials.
        ray_ends: called on SIGTERM; returns whether the signal is ending Ray itself as well, after
            which nothing may wait for Ray.
    """

    def __init__(self, grace_s: float = 0.0, ray_ends: Callable[[], bool] = lambda: False) -> None:
        self.happened = False
        self.ray_has_ended = False
        """Whether SIGTERM has ended Ray as well."""
        self._ray_ends = ray_ends
        self._grace = GracePeriod(
            grace_s, lambda: signal.raise_signal(signal.SIGINT), on_start=self._check_ray
        )
        self._reported: set[str] = set()
        self._before: Any = None

    @property
    def is_ending(self) -> bool:
        """Whether SIGTERM was received, so that no trial may start."""
        return self._grace.has_started

    def end_now(self) -> None:
        """Ends the running trials at once, as Ctrl-C does."""
        self._grace.end_now()

    def trial_reported(self, trial_id: str, running: Iterable[str]) -> None:
        """Records that a trial has finished an epoch, or ended; `running` are the trials running
        now.
        """
        if self.is_ending:
            self._reported.add(trial_id)
            if self._reported.issuperset(running):
                self._grace.end_now()

    def __enter__(self) -> "Interruption":
        # if the user has set it, no handler would stop the trials on SIGINT
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "0"
        self._before = signal.getsignal(signal.SIGINT)
        self._grace.__enter__()
        return self

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        self._grace.__exit__(None, None, None)
        if _can_handle_signals():
            self.happened = self.is_ending or signal.getsignal(signal.SIGINT) is self._before
            signal.signal(signal.SIGINT, self._before)
        # SIGTERM was passed on as SIGINT before or after Tune's handler was in place
        if self.is_ending and kind is KeyboardInterrupt:
            raise (RayTerminated if self.ray_has_ended else Terminated) from error

    def _check_ray(self) -> None:
        if self._ray_ends():
            self.ray_has_ended = True
            # the only exception from a signal handler that Ray's own code does not catch
            raise KeyboardInterrupt


def _can_handle_signals() -> bool:
    # Python runs handlers in the main thread, and lets no other thread install them
    return threading.current_thread() is threading.main_thread()
