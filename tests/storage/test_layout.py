"""Safe writes to a folder, and temporary files of killed writers."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath


def test_only_temporary_files_of_dead_processes_of_this_machine_are_removed(tmp_path: Path) -> None:
    folder = LocalPath(tmp_path)
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process,
        (folder / "own").written_aside() as own,
    ):
        other = own.with_name(own.name.replace(f"-{os.getpid()}.tmp", f"-{process.pid}.tmp"))
        foreign = own.with_name(".file-abc-another-machine-1.tmp")
        for path in (other, foreign, folder / "kept"):
            path.touch()
        folder.remove_orphans()
        assert {path.name for path in tmp_path.iterdir()} == {
            own.name,
            other.name,
            foreign.name,
            "kept",
        }
        process.kill()
        process.wait()
        folder.remove_orphans()
        assert not other.exists()
        assert own.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([foreign.name, "kept", "own"])


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = LocalPath(tmp_path / "file")
    path.write_text("old")

    def fail() -> None:
        with path.written_aside() as aside:
            aside.write_text("new")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert [found.read_text() for found in tmp_path.iterdir()] == ["old"]


def test_all_paths_under_a_local_root_are_local_paths(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    for path in (storage.log, storage.trial("k").parent, storage.data, storage.hang("k", 0)):
        assert isinstance(path, LocalPath), path
    assert pickle.loads(pickle.dumps(storage)) == storage, "Ray sends it to its actors"


def test_a_folder_is_exposed_at_another_path_without_a_copy(tmp_path: Path) -> None:
    folder = LocalPath(tmp_path / "folder")
    folder.expose_at(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    folder.mkdir()
    (folder / "file").write_text("content")
    folder.expose_at(tmp_path / "other" / "place")
    assert (tmp_path / "other" / "place" / "file").read_text() == "content"
    assert (tmp_path / "other" / "place").is_symlink()
