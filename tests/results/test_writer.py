"""Appending to the log from one process or many."""

import contextlib
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from kdr.errors import StorageError
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow, EpochRow, TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
from tests.conftest import PythonProcess, local


def event(key: str, **columns: Any) -> TrialEvent:
    return TrialEvent(study="s", key=key, event="completed", config="{}", **columns)


def epoch(number: int, key: str = "k") -> EpochRow:
    return EpochRow(study="s", key=key, attempt=1, epoch=number, step=number)


def test_an_event_is_written_at_once_with_earlier_epochs(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    writer = LogWriter(storage, "s", flush_every_s=1000)
    writer.epoch(epoch(1))
    assert read_log(storage).epochs.num_rows == 0
    writer.event(event("k"))
    log = read_log(storage)
    assert (log.epochs.num_rows, log.trials.num_rows) == (1, 1)


def test_epoch_rows_share_a_file_until_the_next_flush(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    writer = LogWriter(storage, "s", flush_every_s=1000)
    for number in range(1, 6):
        writer.epoch(epoch(number))
    writer.flush()
    writer.flush()
    assert len(list((storage.log / "epochs" / "study=s").iterdir())) == 1
    LogWriter(storage, "s", flush_every_s=0).epoch(epoch(6))
    assert read_log(storage).epochs["epoch"].to_pylist() == [1, 2, 3, 4, 5, 6]


def test_leaving_the_writer_writes_waiting_rows(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    with (
        contextlib.suppress(KeyboardInterrupt),
        LogWriter(storage, "s", flush_every_s=1000) as writer,
    ):
        writer.epoch(epoch(1))
        raise KeyboardInterrupt
    assert read_log(storage).epochs.num_rows == 1


def test_no_arms_leave_no_file(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").arms([])
    assert not storage.log.exists()
    LogWriter(storage, "s").arms([ArmRow(study="s", key="k", arm="baseline")])
    assert read_log(storage).keys_of("s") == ("k",)


KILLED_BEFORE_RENAME = """
import os, pathlib, signal, sys
from kdr.results.schema import TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
pathlib.Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
log = LogWriter(Storage.at(sys.argv[1]), "s")
log.event(TrialEvent(study="s", key="killed", event="completed", config="{}"))
"""


def test_a_kill_between_writing_and_renaming_leaves_no_row(
    tmp_path: Path, python_process: PythonProcess
) -> None:
    storage = Storage.at(tmp_path)
    LogWriter(storage, "s").event(event("before"))
    assert python_process(KILLED_BEFORE_RENAME, tmp_path).wait(60) == -signal.SIGKILL
    assert len(list((storage.log / "trials" / "study=s").iterdir())) == 2, (
        "the temporary file should have been left behind"
    )
    LogWriter(storage, "s").event(event("after"))
    log = read_log(storage)
    assert sorted(log.states()) == ["after", "before"]
    assert log.damaged == ()


APPEND = """
import sys
from kdr.results.schema import EpochRow, TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
writer, key = LogWriter(Storage.at(sys.argv[1]), "s", flush_every_s=0), sys.argv[2]
for number in range(1, 11):
    writer.epoch(EpochRow(study="s", key=key, attempt=1, epoch=number, step=number))
writer.event(TrialEvent(study="s", key=key, event="completed", config="{}"))
"""


def test_concurrent_processes_lose_no_rows(tmp_path: Path, python_process: PythonProcess) -> None:
    processes = [python_process(APPEND, tmp_path, f"k{index}") for index in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    log = read_log(Storage.at(tmp_path))
    assert sorted(log.states()) == ["k0", "k1", "k2"]
    assert all(
        log.epochs_of(key)["epoch"].to_pylist() == list(range(1, 11)) for key in log.states()
    )


def test_an_unwritable_log_is_a_storage_error_and_keeps_the_rows(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    blocked = local(storage.log) / "epochs"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where the folder should be")
    writer = LogWriter(storage, "s")
    writer.epoch(epoch(1))
    with pytest.raises(StorageError, match=r"study=s is not writable: .*Free space"):
        writer.flush()
    blocked.unlink()
    writer.flush()
    assert read_log(storage).epochs.num_rows == 1


def test_fragments_follow_the_umask(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    before = os.umask(0o022)
    try:
        LogWriter(storage, "s").event(event("k"))
    finally:
        os.umask(before)
    [path] = (local(storage.log) / "trials" / "study=s").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
