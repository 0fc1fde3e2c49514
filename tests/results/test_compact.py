"""Compaction: no row is lost or repeated, whatever runs at the same time or crashes."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kdr.errors import StorageError
from kdr.results import compact as compact_module
from kdr.results import writer as writer_module
from kdr.results.compact import compact
from kdr.results.reader import read_log
from kdr.results.schema import TrialEvent
from kdr.results.writer import LogWriter, write_fragment
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from tests.conftest import PythonProcess, local


class Killed(BaseException):
    """Simulates a killed process: nothing catches it."""


def append(storage: Storage, *keys: str) -> None:
    writer = LogWriter(storage, "s")
    for key in keys:
        writer.event(TrialEvent(study="s", key=key, event="completed", config="{}"))


def keys(storage: Storage) -> list[str]:
    log = read_log(storage)
    assert log.damaged == ()
    return sorted(log.trials["key"].to_pylist())


def folder(storage: Storage) -> LocalPath:
    return local(storage.log) / "trials" / "study=s"


def test_compaction_keeps_the_rows_and_leaves_one_file_to_read(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b", "c")
    before = read_log(storage)
    compact(storage, "s")
    after = read_log(storage)
    assert after.states() == before.states()
    assert after.trials.num_rows == 3
    for part in folder(storage).glob("part-*"):
        part.unlink()
    assert keys(storage) == ["a", "b", "c"]


def test_a_compaction_deletes_the_files_replaced_by_the_previous_one(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    compact(storage, "s")
    assert len(list(folder(storage).glob("part-*"))) == 2, (
        "a reader may still be about to open them"
    )
    append(storage, "c")
    compact(storage, "s")
    assert len(list(folder(storage).glob("part-*"))) == 1
    append(storage, "d")
    compact(storage, "s")
    assert sorted(path.name[:8] for path in folder(storage).glob("c-*.parquet")) == [
        "c-000002",
        "c-000003",
    ]
    assert keys(storage) == ["a", "b", "c", "d"]


def test_compacting_twice_does_nothing_the_second_time(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    compact(storage, "s")
    files = sorted(folder(storage).iterdir())
    compact(storage, "s")
    assert sorted(folder(storage).iterdir()) == files
    compact(storage, "no such study")


@pytest.mark.parametrize("survived", range(6))
def test_a_crash_between_any_two_steps_is_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    """The steps: write and rename the merged file, write and rename the manifest, delete files."""
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    compact(storage, "s")
    append(storage, "c")
    steps = iter(range(100))

    def mortal(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Path, *args: Any, **kwargs: Any) -> Any:
            if self.parent == folder(storage) and next(steps) >= survived:
                raise Killed
            return step(self, *args, **kwargs)

        return run

    path_class = type(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(path_class, "replace", mortal(path_class.replace))
        patch.setattr(path_class, "unlink", mortal(path_class.unlink))
        with pytest.raises(Killed):
            compact(storage, "s")
    assert keys(storage) == ["a", "b", "c"]
    append(storage, "d")
    assert keys(storage) == ["a", "b", "c", "d"]
    for key in "efg":
        compact(storage, "s")
        append(storage, key)
    compact(storage, "s")
    assert keys(storage) == list("abcdefg")
    merged, manifests = (
        sorted(path.stem for path in folder(storage).glob(f"c-*.{kind}"))
        for kind in ("parquet", "json")
    )
    assert merged == manifests, "files left by a crash are deleted in the end"
    assert len(merged) == 2


def test_rows_written_during_a_compaction_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    write = write_fragment

    def write_slowly(table: pa.Table, path: str) -> None:
        append(storage, "late")
        write(table, path)

    monkeypatch.setattr(compact_module, "write_fragment", write_slowly)
    compact(storage, "s")
    assert keys(storage) == ["a", "b", "late"]


@pytest.mark.parametrize("first_id", ["00000000", "ffffffff"])
def test_concurrent_compactions_lose_and_repeat_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_id: str
) -> None:
    """The second one runs in the middle of the first and reads one more row; either may have the
    higher id.
    """
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    write, ids = write_fragment, iter([first_id, "88888888"])
    monkeypatch.setattr("kdr.results.compact.uuid.uuid4", lambda: SimpleNamespace(hex=next(ids)))

    def overtaken(table: pa.Table, path: str) -> None:
        monkeypatch.setattr(compact_module, "write_fragment", write)
        monkeypatch.setattr(writer_module, "fragment_name", lambda: "part-overtaking.parquet")
        append(storage, "c")
        compact(storage, "s")
        write(table, path)

    monkeypatch.setattr(compact_module, "write_fragment", overtaken)
    compact(storage, "s")
    assert len(list(folder(storage).glob("c-000001-*.json"))) == 2
    assert keys(storage) == ["a", "b", "c"]
    monkeypatch.undo()
    for key in ("d", "e"):
        append(storage, key)
        compact(storage, "s")
    assert keys(storage) == ["a", "b", "c", "d", "e"]


def test_a_truncated_merged_file_falls_back_to_the_files_it_replaced(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    compact(storage, "s")
    [merged] = folder(storage).glob("c-*.parquet")
    merged.write_bytes(merged.read_bytes()[:-10])
    log = read_log(storage)
    assert sorted(log.states()) == ["a", "b"]
    assert log.damaged == (merged.with_suffix(".json"),)


def test_compaction_does_not_hide_a_damaged_fragment(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b", "c")
    torn = sorted(folder(storage).iterdir())[0]
    torn.write_bytes(b"PAR1")
    for _ in range(2):
        compact(storage, "s")
        append(storage, "d")
    assert read_log(storage).damaged == (torn,)
    assert set(read_log(storage).states()) == {"b", "c", "d"}


def test_rows_of_a_newer_version_keep_their_columns(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b", "c")
    newer = sorted(folder(storage).iterdir())[0]
    table = pq.read_table(newer, partitioning=None)
    metadata = {**table.schema.metadata, b"kdr.schema_version": b"99"}
    pq.write_table(
        table.append_column("mood", pa.array(["good"])).replace_schema_metadata(metadata), newer
    )
    for key in ("d", "e"):
        compact(storage, "s")
        append(storage, key)
    assert keys(storage) == ["a", "b", "c", "d", "e"]
    assert pq.read_table(newer, partitioning=None)["mood"].to_pylist() == ["good"]


def test_a_generation_of_a_newer_version_is_kept(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")
    compact(storage, "s")
    [merged] = folder(storage).glob("c-*.parquet")
    table = pq.read_table(merged, partitioning=None)
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"kdr.schema_version": b"99"}),
        merged,
    )
    append(storage, "c", "d")
    compact(storage, "s")
    assert keys(storage) == ["a", "b", "c", "d"]


COMPACT_OFTEN = """
import sys
from kdr.results.compact import compact
from kdr.storage.layout import Storage
for _ in range(20):
    compact(Storage.at(sys.argv[1]), "s")
print("done")
"""


def test_readers_always_see_every_row_while_others_write_and_compact(
    tmp_path: Path, python_process: PythonProcess
) -> None:
    storage = Storage.at(tmp_path)
    written: list[str] = []
    processes = [python_process(COMPACT_OFTEN, tmp_path) for _ in range(2)]
    while any(process.poll() is None for process in processes):
        written.append(f"{len(written):04}")
        append(storage, written[-1])
        assert keys(storage) == written
    assert [process.returncode for process in processes] == [0, 0]
    assert list(folder(storage).glob("c-*.json")), "nothing was compacted"


def test_an_unwritable_log_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage.at(tmp_path)
    append(storage, "a", "b")

    def full(table: pa.Table, path: str) -> NoReturn:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compact_module, "write_fragment", full)
    with pytest.raises(StorageError, match=r"must be writable, got No space left on device"):
        compact(storage, "s")
    assert keys(storage) == ["a", "b"]
