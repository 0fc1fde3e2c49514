"""A study in processes of its own, to be killed and looked after."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import kdr
from kdr.storage.layout import Storage
from tests.faults.invariants import none

AGENTS = {"ray::DashboardAgent", "ray::RuntimeEnvAgent"}
"""Of a killed Ray they stay for about a minute, idle, and try to report it."""


TRIAL_TITLES = ("ray::ResourceTrainable", "ray::TrialActor")
"""How Ray names the process of a trial: while it trains, and in between. Processes that it forks
have its name, too."""


class Run:
    """`orchestrate.py run` in a process, and a session, of its own; everything that it starts is in
    that session."""

    def __init__(self, study: Path, storage: Storage, *options: str) -> None:
        self.storage = storage
        assert isinstance(storage.root, Path)
        storage.root.mkdir(parents=True, exist_ok=True)
        self._output = (storage.root / f"output-{study.stem}.txt").open("w+")
        command = [
            sys.executable,
            Path(kdr.__file__).parents[1] / "orchestrate.py",
            "run",
            study,
            "--storage",
            storage.root,
        ]
        command += ["--no-preflight", *options]
        self.driver = subprocess.Popen(
            command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def wait_for(self, what: str, condition: Callable[[], Any], timeout_s: float = 90) -> Any:
        """Waits until a condition holds, and says what."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.driver.poll() is None, f"the run ended before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"waited in vain for {what}:\n{self.text()}"
            time.sleep(0.05)
        return found

    def ended(self, timeout_s: float = 120) -> int:
        """The exit code of the driver."""
        return self.driver.wait(timeout_s)

    def text(self) -> str:
        """What it has printed so far."""
        return Path(self._output.name).read_text()

    def processes(self) -> dict[int, str]:
        """Processes of this run that are alive, by id with their command lines."""
        found = {}
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
        """The process that trains."""
        return next(
            (pid for pid, command in self.processes().items() if command.startswith(TRIAL_TITLES)),
            None,
        )

    def close(self) -> None:
        """Ends what is left, each process by its id."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.driver.wait()
        self._output.close()


def finished(*runs: Run) -> list[str]:
    """Waits until runs have ended well, and gives what they have printed."""
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
