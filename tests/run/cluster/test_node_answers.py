"""A node's answers, taken on this machine, where they are known."""

import json
from pathlib import Path

import pytest
import torch

from kdr.config.data import CocoData, ShapesData
from kdr.run.cluster.node_answers import (
    COMPARED,
    GpuMemory,
    Questions,
    answer,
    gpu_memory_from,
    remove_marks,
    unread_marks,
    versions_here,
)
from kdr.storage.layout import Storage


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


def questions(storage: Storage, **more: object) -> Questions:
    return Questions(storage, storage.marks("1"), **more)  # type: ignore[arg-type]


def test_versions_are_those_of_python_kdr_and_the_compared_packages() -> None:
    versions = versions_here()
    assert set(versions) == {"python", "kdr", *COMPARED}
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert "not installed" not in versions.values()


def test_the_code_of_kdr_is_part_of_its_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = []
    for content in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "__init__.py").write_text(content)
        monkeypatch.setattr("kdr.__file__", str(tmp_path / "__init__.py"))
        found.append(versions_here()["kdr"])
    assert found[0] == found[2] != found[1]


def test_every_node_can_read_the_marks_of_the_others_until_they_are_removed(
    storage: Storage,
) -> None:
    asked = questions(storage)
    assert [answer(node, asked, mark=node).not_written for node in ("a", "b")] == ["", ""]
    assert unread_marks(asked.marks, ["a", "b", "c"]) == ["c"]
    remove_marks(asked.marks, ["a", "b", "c"])
    assert unread_marks(asked.marks, ["a", "b"]) == ["a", "b"]
    assert list(storage.root.iterdir()) == []


def test_an_unwritable_storage_is_reported(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    storage = Storage.at(tmp_path / "runs")
    assert answer("a", questions(storage), mark="a").not_written == "Not a directory"


def test_data_and_weights_are_identified_by_content_and_missing_files_named_by_path(
    storage: Storage, tmp_path: Path
) -> None:
    weights = tmp_path / "teacher.pt"
    weights.write_bytes(b"1")
    (tmp_path / "empty.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": []})
    )
    paths = {
        "train_images": str(tmp_path),
        "val_images": str(tmp_path),
        "train_annotations": str(tmp_path / "empty.json"),
    }
    missing = CocoData(dataset="coco", **paths, val_annotations=str(tmp_path / "missing.json"))
    found = answer(
        "a",
        questions(
            storage,
            data=(ShapesData(dataset="shapes"), missing),
            weights=(str(weights), str(tmp_path / "none.pt")),
        ),
        mark="a",
    )
    assert set(found.contents) == {"data set 1", str(weights)}
    assert [problem.partition(":")[0] for problem in found.problems] == [
        str(tmp_path / "missing.json"),
        str(tmp_path / "none.pt"),
    ]
    weights.write_bytes(b"2")
    again = answer("a", questions(storage, weights=(str(weights),)), mark="a")
    assert again.contents[str(weights)] != found.contents[str(weights)]


def test_memory_is_parsed_from_the_output_of_nvidia_smi() -> None:
    text = "NVIDIA H100 80GB HBM3, 40960, 81559\nNVIDIA RTX A6000, 1024, 49140\n"
    assert gpu_memory_from(text) == (
        GpuMemory("NVIDIA H100 80GB HBM3", 40.0, 81559 / 1024),
        GpuMemory("NVIDIA RTX A6000", 1.0, 49140 / 1024),
    )
    assert gpu_memory_from("") == ()
