"""Writes to a storage that is full, read-only or unreachable."""

import errno
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from kdr.errors import StorageError, WeightsError
from kdr.results.reader import read_log
from kdr.results.schema import EpochRow, TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.files import store
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.storage.patience import patiently
from kdr.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from tests.small_disk import empty, fill, small_disk


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Sleeping takes no time, and is recorded."""
    slept: list[float] = []
    monkeypatch.setattr("kdr.storage.patience.time.sleep", slept.append)
    monkeypatch.setattr("kdr.storage.patience.time.monotonic", lambda: sum(slept))
    return slept


def failing(times: int, number: int = errno.ESTALE) -> Callable[[], str]:
    """Fails as often as given, then succeeds."""
    errors = [OSError(number, os.strerror(number))] * times

    def do() -> str:
        if errors:
            raise errors.pop()
        return "done"

    return do


def test_an_unreachable_storage_is_retried_with_one_line_for_the_outage_and_one_for_its_end(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert patiently(failing(4)) == "done"
    assert clock == [1, 2, 4, 8]
    first, last = (record.getMessage() for record in caplog.records)
    assert first == "The storage is unreachable (Stale file handle). Retrying for up to 300 s"
    assert last == "The storage is reachable again, after 15 s"


def test_retries_end_after_the_time_limit(clock: list[float]) -> None:
    with pytest.raises(OSError, match="Stale"):
        patiently(failing(1000), patience_s=60)
    assert sum(clock) == 60


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.ENOENT])
def test_an_error_that_waiting_does_not_fix_is_raised_at_once(
    clock: list[float], number: int
) -> None:
    with pytest.raises(OSError, match=os.strerror(number)):
        patiently(failing(1, number))
    assert clock == []


def test_no_row_is_lost_while_the_storage_is_unreachable(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
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
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_is_a_storage_error_and_damages_no_file(disk: Path) -> None:
    place, module = Storage.at(disk), torch.nn.Linear(100, 100)
    path = place.trial("k") / "checkpoint.pt"
    with LogWriter(place, "s") as log:
        log.event(TrialEvent(study="s", key="k", event="started", config="{}"))
        save_checkpoint(path, Progress(1), {"model": module})
        fill(disk)
        log.epoch(EpochRow(study="s", key="k", attempt=1, epoch=1, step=1))
        with pytest.raises(
            StorageError,
            match=(r"study=s is not writable: No space left on device\. Free"),
        ):
            log.flush()
        with pytest.raises(
            StorageError,
            match=r"trials/k is not writable: No space left on device",
        ):
            save_checkpoint(path, Progress(2), {"model": module})
        assert read_log(place).states()["k"].state == "running"
        assert load_checkpoint(path, {"model": module}).epoch == 1
        empty(disk)
    found = read_log(place)
    assert (found.epochs.num_rows, found.damaged) == (1, ())
    assert list(disk.rglob("*.tmp")) == []


def test_a_read_only_disk_is_readable_and_a_storage_error_for_writers(disk: Path) -> None:
    place = Storage.at(disk)
    LogWriter(place, "s").event(TrialEvent(study="s", key="k", event="completed", config="{}"))
    place.trial("k").mkdir(parents=True)
    (place.trial("k") / "checkpoint.pt").touch()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(
        StorageError,
        match=r"trials/k is not writable: Read-only file system",
    ):
        place.forget_weights("k")
    with pytest.raises(StorageError, match="is not writable: Read-only file system"):
        LogWriter(place, "s").event(
            TrialEvent(study="s", key="other", event="completed", config="{}")
        )
    with pytest.raises(
        StorageError,
        match=r"--storage: must be a writable folder, got .*Read-only file system",
    ):
        place.check_writable()
    assert list(read_log(place).states()) == ["k"]


def test_a_write_error_keeps_the_old_content(tmp_path: Path) -> None:
    path = LocalPath(tmp_path / "file")
    path.write_text("old")

    def write(aside: Path) -> None:
        aside.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match="No space left on device"):
        store(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "/etc", "a/b", "a\\b", "a\0b"])
def test_no_name_leads_out_of_the_storage(tmp_path: Path, name: str) -> None:
    """Keys and studies are read from the log, whose files anyone may have written."""
    place = Storage.at(tmp_path)
    paths: list[Callable[[str], object]] = [
        place.trial,
        place.lock,
        place.teacher,
        place.drivers,
        place.preflight,
        place.search,
        place.loggers,
    ]
    for path in paths:
        with pytest.raises(StorageError, match="must be a name without path characters"):
            path(name)
    with pytest.raises(StorageError, match="must be a name without path characters"):
        LogWriter(place, name).event(
            TrialEvent(study=name, key="k", event="completed", config="{}")
        )
    assert list(tmp_path.iterdir()) == []


class Bomb:
    """Records when it is unpickled."""

    marks: list[str] = []

    def __reduce__(self) -> tuple[Any, ...]:
        return self.marks.append, ("exploded",)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path, module = LocalPath(tmp_path / "checkpoint.pt"), torch.nn.Linear(1, 1)
    torch.save({"version": 1, "progress": Bomb(), "parts": {}}, path)
    with pytest.raises(
        WeightsError,
        match=r"checkpoint.pt: not a readable checkpoint \(Weights only load failed.*Remove it",
    ):
        load_checkpoint(path, {"model": module})
    torch.save([1], path)
    with pytest.raises(WeightsError, match="must be a checkpoint of version 1, got list"):
        load_checkpoint(path, {"model": module})
    assert Bomb.marks == []
