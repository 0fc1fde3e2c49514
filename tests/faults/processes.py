"""Studies in separate processes, to be killed and cleaned up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import TypeVar

import kdr
from kdr.storage.layout import Storage
from tests.faults.invariants import none

T = TypeVar("T")

AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""After a Ray was killed, these stay for about a minute, idle, trying to report it."""


TRIAL_TITLES = ("ray::ResourceTrainable", "ray::TrialActor")
"""How Ray titles the process of a trial, while it trains and in between. Its forks have the same
title."""


def orchestrate(*arguments: object) -> list[str]:
    """The command line of `orchestrate.py` with arguments."""
    script = Path(kdr.__file__).parents[1] / "orchestrate.py"
    return [str(part) for part in (sys.executable, script, *arguments)]


class Run:
    """`orchestrate.py run` in a process and session of its own, as is everything that it starts."""

    def __init__(self, study: Path, storage: Storage, *options: str) -> None:
        self.storage = storage
        storage.local.mkdir(parents=True, exist_ok=True)
        self._output = (storage.local / f"output-{study.stem}.txt").open("w+")
        self.driver = subprocess.Popen(
            [*orchestrate("run", study, "--storage", storage.root, "--no-preflight"), *options],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, what: str, condition: Callable[[], T | None], timeout_s: float = 90) -> T:
        """Waits until a condition is true; returns its value."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.driver.poll() is None, f"the run ended before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"timed out waiting for {what}:\n{self.text()}"
            time.sleep(0.05)
        return found

    def ended(self, timeout_s: float = 120) -> int:
        """The exit code of the driver."""
        return self.driver.wait(timeout_s)

    def text(self) -> str:
        """Its output so far."""
        return Path(self._output.name).read_text()

    def processes(self) -> dict[int, str]:
        """Live processes of this run: pid -> command line."""
        found = dict[int, str]()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                state, _parent, _group, session = (
                    (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                )
                if int(session) == self.driver.pid and state != "Z":
                    found[int(folder.name)] = (
                        (folder / "cmdline").read_text().replace("\0", " ").strip()
                    )
            except (OSError, ValueError):
                continue  # it has just ended
        return found

    def trial_process(self) -> int | None:
        """Pid of the process that trains."""
        return next(
            (pid for pid, command in self.processes().items() if command.startswith(TRIAL_TITLES)),
            None,
        )

    def close(self) -> None:
        """Ends the remaining processes by their ids."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.driver.wait()
        self._output.close()


def finished(*runs: Run) -> list[str]:
    """Waits until runs have ended without an error; returns their outputs."""
    try:
        for run in runs:
            assert run.ended(timeout_s=300) == 0, run.text()
        return [run.text() for run in runs]
    finally:
        for run in runs:
            run.close()


def check_no_process_is_left(run: Run, *, within_s: float, but_for: Set[str] = frozenset()) -> None:
    end = time.monotonic() + within_s
    while (left := set(run.processes().values()) - but_for) and time.monotonic() < end:
        time.sleep(0.1)
    none("left behind", left)
