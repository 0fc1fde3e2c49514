"""Files that are written while their storage is full, read-only, or away for a while."""

import errno
import logging
import os
import subprocess
from pathlib import Path

import pytest
import torch

from kdr.errors import StorageError, WeightsError
from kdr.results.reader import read_log
from kdr.results.schema import EpochRow, TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage import patience
from kdr.storage.files import store
from kdr.storage.layout import Storage
from kdr.storage.patience import patiently
from kdr.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.small_disk import empty, fill, small_disk


@pytest.fixture
def clock(monkeypatch):
    """Sleeping costs no time here, and is counted."""
    slept = []
    monkeypatch.setattr(patience.time, "sleep", slept.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: sum(slept))
    return slept


def failing(times, number=errno.ESTALE):
    errors = [OSError(number, os.strerror(number))] * times

    def do():
        if errors:
            raise errors.pop()
        return "done"

    return do


def test_what_cannot_be_reached_is_tried_again_and_both_are_said_once(clock, caplog):
    with caplog.at_level(logging.WARNING):
        assert patiently(failing(4)) == "done"
    assert clock == [1, 2, 4, 8]
    first, last = (record.getMessage() for record in caplog.records)
    assert first == "The storage cannot be reached (Stale file handle). Trying again for 300 s"
    assert last == "The storage can be reached again, after 15 s"


def test_patience_ends(clock):
    with pytest.raises(OSError, match="Stale"):
        patiently(failing(1000), patience_s=60)
    assert sum(clock) == 60


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_what_waiting_does_not_mend_is_raised_at_once(clock, number):
    with pytest.raises(OSError, match=os.strerror(number)):
        patiently(failing(1, number))
    assert clock == []


def test_no_row_is_lost_while_the_storage_is_away(tmp_path, clock, monkeypatch):
    place, away = Storage.at(tmp_path), failing(6)
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda *paths: away() and replace(*paths))
    with LogWriter(place, "s", flush_every_s=0) as log:
        for number in range(1, 4):
            log.epoch(EpochRow(study="s", key="k", attempt=1, epoch=number, step=number))
        log.event(TrialEvent(study="s", key="k", event="completed", config="{}"))
    assert sum(clock) == 45
    found = read_log(place)
    assert found.epochs_of("k")["epoch"].to_pylist() == [1, 2, 3]
    assert found.states()["k"].state == "completed"
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_a_storage_error_and_harms_nothing_that_is_there(disk):
    place, module = Storage.at(disk), torch.nn.Linear(100, 100)
    path = place.trial("k") / "checkpoint.pt"
    with LogWriter(place, "s") as log:
        log.event(TrialEvent(study="s", key="k", event="started", config="{}"))
        save_checkpoint(path, Progress(1), {"model": module})
        fill(disk)
        log.epoch(EpochRow(study="s", key="k", attempt=1, epoch=1, step=1))
        with pytest.raises(
            StorageError,
            match=(
                r"study=s: must be a folder that can be written, got No space left on device\."
                r" Free"
            ),
        ):
            log.flush()
        with pytest.raises(
            StorageError,
            match=r"trials/k: must be a folder that can be written, got No space left on device",
        ):
            save_checkpoint(path, Progress(2), {"model": module})
        assert read_log(place).states()["k"].state == "running"
        assert load_checkpoint(path, {"model": module}).epoch == 1
        empty(disk)
    found = read_log(place)
    assert (found.epochs.num_rows, found.damaged) == (1, ())
    assert list(disk.rglob("*.tmp")) == []


def test_a_read_only_disk_can_be_read_and_is_a_storage_error_to_writers(disk):
    place = Storage.at(disk)
    LogWriter(place, "s").event(TrialEvent(study="s", key="k", event="completed", config="{}"))
    place.trial("k").mkdir(parents=True)
    (place.trial("k") / "checkpoint.pt").touch()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(
        StorageError,
        match=r"trials/k: must be a folder that can be written, got Read-only file system",
    ):
        place.forget_weights("k")
    with pytest.raises(
        StorageError, match="must be a folder that can be written, got Read-only file system"
    ):
        LogWriter(place, "s").event(
            TrialEvent(study="s", key="other", event="completed", config="{}")
        )
    with pytest.raises(
        StorageError,
        match=r"--storage: needs a folder that can be written, got .*Read-only file system",
    ):
        place.check_writable()
    assert list(read_log(place).states()) == ["k"]


def test_a_writer_that_is_refused_leaves_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside):
        aside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        store(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc", "a/b", "a\\b", "a\0b"])
def test_no_name_leads_out_of_the_storage(tmp_path, name):
    """Keys and studies are read from the log, and a file of it may have been written by anyone."""
    place = Storage.at(tmp_path)
    for path in (
        place.trial,
        place.lock,
        place.teacher,
        place.drivers,
        place.preflight,
        place.search,
        place.loggers,
    ):
        with pytest.raises(StorageError, match="must be a name without path characters"):
            path(name)
    with pytest.raises(StorageError, match="must be a name without path characters"):
        LogWriter(place, name).event(
            TrialEvent(study=name, key="k", event="completed", config="{}")
        )
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Leaves a mark when it is unpickled."""

    marks: list[str] = []

    def __reduce__(self):
        return self.marks.append, ("exploded",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path):
    path, module = tmp_path / "checkpoint.pt", torch.nn.Linear(1, 1)
    torch.save({"version": 1, "progress": Bomb(), "parts": {}}, path)
    with pytest.raises(
        WeightsError,
        match=r"checkpoint.pt: is no readable checkpoint \(Weights only load failed.*Remove it",
    ):
        load_checkpoint(path, {"model": module})
    torch.save([1], path)
    with pytest.raises(WeightsError, match="must be a checkpoint of version 1, got list"):
        load_checkpoint(path, {"model": module})
    assert Bomb.marks == []
