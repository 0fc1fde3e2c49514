"""How files are written: aside, then renamed; and what becomes of those whose writer was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdr.storage.files import remove_orphans, written_aside


def test_only_what_a_dead_process_of_this_machine_has_left_is_removed(tmp_path: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process,
        written_aside(tmp_path / "own") as own,
    ):
        other = own.with_name(own.name.replace(f"-{os.getpid()}.tmp", f"-{process.pid}.tmp"))
        elsewhere = own.with_name(".file-abc-another-machine-1.tmp")
        for path in (other, elsewhere, tmp_path / "kept"):
            path.touch()
        remove_orphans(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {
            own.name,
            other.name,
            elsewhere.name,
            "kept",
        }
        process.kill()
        process.wait()
        remove_orphans(tmp_path)
        assert not other.exists()
        assert own.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [elsewhere.name, "kept", "own"]
    )


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail() -> None:
        with written_aside(path) as aside:
            aside.write_text("new")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail()
    assert [found.read_text() for found in tmp_path.iterdir()] == ["old"]
