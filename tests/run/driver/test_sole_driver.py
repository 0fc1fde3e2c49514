"""Several drivers of one study: in this process, in others, and as if on another machine."""

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdr.errors import BusyError
from kdr.run.driver import sole_driver as module
from kdr.run.driver.sole_driver import Claim, sole_driver
from kdr.run.observer import ignore
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage

HOLD = """
import sys, time
from kdr.run.driver.sole_driver import sole_driver
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
with sole_driver(Storage.at(sys.argv[1]), "s", on_waiting=print):
    open(sys.argv[2], "w").close()
    time.sleep(60)
"""

COUNT = """
import sys, time
from pathlib import Path
from kdr.errors import BusyError
from kdr.run.driver.sole_driver import sole_driver
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
folder, number = Path(sys.argv[2]), sys.argv[3]
(folder / f"ready-{number}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
try:
    with sole_driver(Storage.at(sys.argv[1]), "s", on_waiting=print):
        (folder / f"runs-{number}").touch()
        time.sleep(1.5)
except BusyError:
    (folder / f"refused-{number}").touch()
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.05)
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.5)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, fast: None) -> None:
    """For tests that do not wait for a death: a busy machine can be silent for half a second."""
    monkeypatch.setattr(module, "DEAD_AFTER_S", 30.0)


def of_another_machine(storage: Storage, **columns: Any) -> StoredPath:
    """Writes the claim of a driver on another machine, whose process cannot be checked."""
    known = {
        "machine": "another start",
        "born": "1",
        "since": "2026-01-01 00:00:00 UTC",
        "held": True,
        **columns,
    }
    claim = Claim("node-2", os.getpid(), **known)
    path = storage.local / "drivers" / "s" / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(dataclasses.asdict(claim)).encode())
    return path


def holding(
    python_process: Callable[..., subprocess.Popen[bytes]], storage: Storage, tmp_path: Path
) -> subprocess.Popen[bytes]:
    process, mark = python_process(HOLD, storage.root, tmp_path / "holds"), tmp_path / "holds"
    while not mark.exists():
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_a_second_driver_is_refused_until_the_first_has_ended(storage: Storage) -> None:
    with sole_driver(storage, "s", on_waiting=ignore):
        refusal = (
            rf"^study s is already running \(process {os.getpid()} on .*, since .* UTC\)\. See"
            r" `kdr status s`"
        )
        with pytest.raises(BusyError, match=refusal), sole_driver(storage, "s", on_waiting=ignore):
            pass
        with sole_driver(storage, "another", on_waiting=ignore):
            pass
    with sole_driver(storage, "s", on_waiting=ignore):
        assert len(list(storage.drivers("s").iterdir())) == 1
    assert list(storage.drivers("s").iterdir()) == []


def test_a_killed_driver_on_this_machine_is_replaced_at_once(
    storage: Storage, tmp_path: Path, python_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    first = holding(python_process, storage, tmp_path)
    with (
        pytest.raises(BusyError, match=f"process {first.pid} on"),
        sole_driver(storage, "s", on_waiting=ignore),
    ):
        pass
    first.kill()
    first.wait()
    begin = time.monotonic()
    with sole_driver(storage, "s", on_waiting=pytest.fail):
        assert time.monotonic() - begin < 1
        assert len(list(storage.drivers("s").iterdir())) == 1


def test_a_process_that_reuses_a_dead_drivers_pid_is_not_mistaken_for_it(storage: Storage) -> None:
    # with the pid of this process, but another start time
    of_another_machine(storage, machine=module._machine())
    with sole_driver(storage, "s", on_waiting=pytest.fail):
        pass


@pytest.mark.slow
def test_of_drivers_that_start_at_the_same_time_one_runs(
    storage: Storage, tmp_path: Path, python_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    processes = [python_process(COUNT, storage.root, tmp_path, number) for number in range(4)]
    while len(list(tmp_path.glob("ready-*"))) < 4:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0] * 4
    assert (len(list(tmp_path.glob("runs-*"))), len(list(tmp_path.glob("refused-*")))) == (1, 3)


@pytest.mark.usefixtures("fast")
def test_a_silent_driver_on_another_machine_is_waited_for_and_then_replaced(
    storage: Storage,
) -> None:
    path, messages = of_another_machine(storage), list[str]()
    begin = time.monotonic()
    with sole_driver(storage, "s", on_waiting=messages.append):
        assert time.monotonic() - begin >= 0.5
        assert not path.exists()
    assert messages == [
        f"Waiting up to 0 s for a heartbeat of process {os.getpid()} on node-2, which ran this "
        "study"
    ]


@pytest.mark.usefixtures("fast", "patient")
def test_a_heartbeat_from_another_machine_is_enough_to_be_refused(storage: Storage) -> None:
    path = of_another_machine(storage)
    beat = threading.Timer(0.2, lambda: of_another_machine(storage, name=path.stem, beat=1))
    beat.start()
    with (
        pytest.raises(BusyError, match="on node-2, since"),
        sole_driver(storage, "s", on_waiting=ignore),
    ):
        pass
    assert [left.name for left in storage.drivers("s").iterdir()] == [path.name]


@pytest.mark.usefixtures("fast", "patient")
@pytest.mark.parametrize("how", ["its claim is gone", "another driver holds the study"])
def test_a_driver_that_others_believed_dead_ends(storage: Storage, how: str) -> None:
    """Such as on a laptop whose lid was closed for an hour."""
    lost = threading.Event()
    with sole_driver(storage, "s", on_waiting=ignore, on_lost=lost.set):
        assert not lost.wait(0.3)
        if how == "its claim is gone":
            [path] = storage.drivers("s").iterdir()
            path.unlink()
        else:
            of_another_machine(storage)
        assert lost.wait(5)


def test_a_lost_study_ends_as_sigterm_ends_it() -> None:
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        module.terminate_this_run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_files_that_are_not_claims_are_ignored(storage: Storage) -> None:
    folder = storage.local / "drivers" / "s"
    folder.mkdir(parents=True)
    (folder / "notes.json").write_bytes(b"[1")
    (folder / "old.json").write_bytes(b'{"of": "another version"}')
    with sole_driver(storage, "s", on_waiting=pytest.fail):
        pass
