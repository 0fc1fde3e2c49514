"""Checks of the log: what is reported, and what can be quarantined."""

import os
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kdr.results.check import check_log, quarantine
from kdr.results.compact import compact
from kdr.results.fragments import study_folders
from kdr.results.reader import read_log
from kdr.results.schema import TrialEvent
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from tests.conftest import local


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def append(storage: Storage, *events: dict[str, Any], study: str = "s") -> list[LocalPath]:
    writer = LogWriter(storage, study)
    for columns in events:
        writer.event(TrialEvent(study=study, config="{}", **columns))
    return sorted(local(study_folders(storage, "trials")[study]).glob("part-*.parquet"))


def kinds(storage: Storage) -> list[tuple[str, str]]:
    return [(finding.kind, finding.where) for finding in check_log(storage)]


def test_an_intact_log_has_no_findings(storage: Storage) -> None:
    assert check_log(storage) == ()
    append(storage, {"key": "a", "event": "started"}, {"key": "a", "event": "completed", "AP": 0.5})
    compact(storage, "s")
    assert check_log(storage) == ()


def test_a_truncated_file_is_reported_and_quarantined_with_the_reason(storage: Storage) -> None:
    torn, _ = append(
        storage, {"key": "a", "event": "completed"}, {"key": "b", "event": "completed"}
    )
    content = torn.read_bytes()[:100]
    torn.write_bytes(content)
    [finding] = check_log(storage)
    assert (finding.kind, finding.where, finding.is_problem) == ("damaged", str(torn), True)
    [moved] = quarantine(storage, finding)
    assert moved == storage.root / "log" / "quarantine" / "v1" / "trials" / "study=s" / torn.name
    assert moved.read_bytes() == content
    assert moved.with_name(f"{torn.name}.reason.txt").read_text().endswith(f"It was {torn}\n")
    assert check_log(storage) == ()
    assert read_log(storage).studies() == ("s",)
    assert quarantine(storage, finding) == []


@pytest.mark.parametrize("torn", ["parquet", "json"])
def test_a_damaged_compaction_falls_back_to_the_files_it_replaced(
    storage: Storage, torn: str
) -> None:
    append(storage, {"key": "a", "event": "completed"}, {"key": "b", "event": "completed"})
    compact(storage, "s")
    [path] = local(study_folders(storage, "trials")["s"]).glob(f"c-*.{torn}")
    path.write_bytes(path.read_bytes()[:20])
    [finding] = check_log(storage)
    assert len(quarantine(storage, finding)) == 2
    assert check_log(storage) == ()
    assert sorted(read_log(storage).states()) == ["a", "b"]


def test_only_old_temporary_files_are_reported(storage: Storage) -> None:
    [path] = append(storage, {"key": "a", "event": "completed"})
    fresh, old = path.with_name(".part-1-x.tmp"), path.with_name(".part-2-x.tmp")
    fresh.touch()
    old.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    assert kinds(storage) == [("temporary", str(old))]


def test_contradicting_results_are_reported_except_of_excluded_attempts(
    storage: Storage,
) -> None:
    first = {"key": "a", "event": "completed", "AP": 0.5}
    append(storage, first, {**first, "attempt": 2})
    assert check_log(storage) == ()
    append(storage, {**first, "attempt": 3, "AP": 0.25})
    [finding] = check_log(storage)
    assert (finding.kind, finding.where) == ("contradiction", "a")
    assert "0.5 (attempt 1), 0.5 (attempt 2), 0.25 (attempt 3). The last one counts" in finding.what
    append(storage, {"key": "a", "event": "excluded", "attempt": 2})
    assert check_log(storage) == ()


def test_an_unfinished_trial_is_reported_but_not_a_problem(storage: Storage) -> None:
    append(storage, {"key": "a", "event": "started"})
    [finding] = check_log(storage)
    assert (finding.kind, finding.where, finding.is_problem) == ("unfinished", "a", False)


def test_foreign_files_are_reported_and_quarantined(storage: Storage) -> None:
    [path] = append(storage, {"key": "a", "event": "completed"})
    compact(storage, "s")
    foreign = [
        local(storage.log) / "notes.txt",
        local(storage.log) / "trials" / "old",
        path.parent / "part-1.csv",
        path.parent / "backup",
    ]
    for place in foreign[::2]:
        place.write_text("hello")
    for place in foreign[1::2]:
        place.mkdir()
        (place / "a").touch()
    assert {(finding.kind, finding.where) for finding in check_log(storage)} == {
        ("foreign", str(place)) for place in foreign
    }
    moved = [quarantine(storage, finding) for finding in check_log(storage)]
    assert len(moved) == 4
    assert (storage.quarantine / "v1" / "trials" / "study=s" / "backup" / "a").exists()
    assert check_log(storage) == ()
    assert list(read_log(storage).states()) == ["a"]


@pytest.mark.parametrize("name", ["checkpoint.pt", "student.pt"])
def test_truncated_weights_are_reported_and_quarantined(storage: Storage, name: str) -> None:
    append(storage, {"key": "a", "event": "completed"})
    path = local(storage.trial("a")) / name
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", b"\0" * 1000)
    assert check_log(storage) == ()
    path.write_bytes(path.read_bytes()[:-1])
    [finding] = check_log(storage)
    assert (finding.kind, finding.where) == ("damaged", str(path))
    assert "is truncated" in finding.what
    assert quarantine(storage, finding) == [storage.quarantine / "trials" / "a" / name]
    assert check_log(storage) == ()
