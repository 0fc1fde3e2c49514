"""Ctrl-C, SIGTERM and SIGHUP, with Tune's own handlers installed."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ray.tune.tune import _setup_signal_catching

from kdr.run.driver.interruption import GracePeriod, Interruption, RayTerminated, Terminated


@pytest.fixture
def _restored_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_restored_handlers")
def test_ctrl_c_is_noticed_despite_tunes_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNE_DISABLE_SIGINT_HANDLER", "1")
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        interrupted = _setup_signal_catching()  # Tune's own
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.wait(5)
    assert interruption.happened
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("_restored_handlers")
def test_after_tune_ctrl_c_raises_again() -> None:
    with Interruption() as interruption:
        _setup_signal_catching()
    assert not interruption.happened
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        signal.raise_signal(signal.SIGINT)


def end_of(ended: list[float]) -> Callable[[], None]:
    return lambda: ended.append(time.monotonic())


def test_the_grace_period_ends_by_itself() -> None:
    ended: list[float] = []
    with GracePeriod(0.3, end_of(ended)) as grace:
        begin = time.monotonic()
        signal.raise_signal(signal.SIGTERM)
        assert grace.has_started
        assert not ended
        time.sleep(0.6)
    assert 0.25 < ended[0] - begin < 0.55


def test_a_second_sigterm_ends_at_once_and_only_once() -> None:
    ended: list[float] = []
    before = signal.getsignal(signal.SIGTERM)
    with GracePeriod(60, end_of(ended)) as grace:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # `timeout` sends it to the process and to its group
        assert not ended
        time.sleep(0.6)
        signal.raise_signal(signal.SIGTERM)
        assert len(ended) == 1
        grace.end_now()
    assert len(ended) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("_restored_handlers")
def test_sigterm_ends_tune_when_every_running_trial_has_reported() -> None:
    with Interruption(60) as interruption:
        interrupted = _setup_signal_catching()
        interruption.trial_reported("a", ["a", "b"])
        signal.raise_signal(signal.SIGTERM)
        assert interruption.is_ending
        interruption.trial_reported("b", ["a", "b"])
        assert not interrupted.is_set()
        interruption.trial_reported("a", ["a", "b"])
        assert interrupted.is_set()
    assert interruption.happened


@pytest.mark.usefixtures("_restored_handlers")
def test_sigterm_before_tune_has_its_handler_ends_the_run() -> None:
    with pytest.raises(Terminated, match=r"^$"), Interruption(0):
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("_restored_handlers")
def test_sigterm_that_also_ended_ray_ends_the_run_without_waiting() -> None:
    with pytest.raises(RayTerminated, match=r"^$"), Interruption(60, lambda: True) as interruption:
        signal.raise_signal(signal.SIGTERM)
    assert interruption.is_ending
    assert interruption.ray_has_ended


IN_A_TERMINAL = """
import os, time
from kdr.run.driver.interruption import GracePeriod, Terminated, end_by_exception
try:
    with GracePeriod(2, end_by_exception) as grace:
        print("up", flush=True)
        while not grace.has_started:
            time.sleep(0.01)
        print("into the closed terminal", flush=True)
        time.sleep(30)
except Terminated:
    os._exit(143)
"""


CLOSES_THE_TERMINAL = """
import os, pty, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # in case the tests run under `nohup`
pid, terminal = pty.fork()  # the child leads a session with a terminal of its own, as a shell does
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
assert os.read(terminal, 100).strip() == b"up"
os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.slow
def test_a_closed_terminal_is_handled_like_sigterm_and_printing_to_it_does_not_fail(
    python_process: Callable[..., Any],
) -> None:
    assert python_process(CLOSES_THE_TERMINAL, IN_A_TERMINAL).wait(30) == 143


def test_sighup_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracePeriod(60, lambda: None) as grace:
            signal.raise_signal(signal.SIGHUP)
            assert not grace.has_started
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_another_thread_no_handler_is_installed() -> None:
    seen: list[bool] = []

    def run() -> None:
        with Interruption() as interruption:
            pass
        seen.append(interruption.happened)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [False]
