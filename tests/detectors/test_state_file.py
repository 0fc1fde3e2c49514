"""Reading weights files: nothing in a file is run, whether it is refused or ignored."""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdr.detectors.state_file import read_state, read_state_file
from kdr.errors import WeightsError

STATE = {"a.weight": torch.arange(4.0)}


class Bomb:
    """Leaves a mark when it is unpickled with code of its own."""

    marks: list[str] = []

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return explode, ("reduced",)


def explode(mark: str) -> None:
    Bomb.marks.append(mark)


@pytest.fixture
def library_object(monkeypatch: pytest.MonkeyPatch) -> object:
    """An object of a library that is not installed where the file is read."""
    module = types.ModuleType("mmengine_like")
    history = type(
        "HistoryBuffer", (), {"__module__": "mmengine_like", "__qualname__": "HistoryBuffer"}
    )
    module.HistoryBuffer = history  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmengine_like", module)
    found: Any = history()
    found.values = [1.0, 2.0]
    instance: object = found
    return instance


def test_objects_of_other_libraries_are_ignored(
    tmp_path: Path, library_object: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "epoch_12.pth"
    torch.save(
        {
            "meta": {"epoch": 12, "hub": library_object},
            "state_dict": STATE,
            "message_hub": [library_object],
        },
        path,
    )
    monkeypatch.delitem(sys.modules, "mmengine_like")
    file = read_state_file(str(path))
    assert torch.equal(file.state["a.weight"], STATE["a.weight"])
    assert file.meta["epoch"] == 12
    assert file.others == ("message_hub",)


def test_numpy_values_in_the_file_are_ignored(tmp_path: Path) -> None:
    import numpy as np

    path = tmp_path / "w.pth"
    torch.save({"state_dict": STATE, "random_state": np.zeros(3), "loss": np.float64(1.5)}, path)
    assert read_state_file(str(path)).others == ("random_state", "loss")


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": STATE, "meta": {"CLASSES": Bomb()}}, path)
    assert set(read_state(str(path))) == {"a.weight"}
    assert Bomb.marks == []
    torch.load(path, weights_only=False)  # the bomb is live
    assert Bomb.marks == ["reduced"]


def test_a_file_in_the_old_format_with_objects_is_refused_with_a_hint(
    tmp_path: Path, library_object: object
) -> None:
    path = tmp_path / "w.pth"
    torch.save(
        {"state_dict": STATE, "meta": library_object}, path, _use_new_zipfile_serialization=False
    )
    with pytest.raises(
        WeightsError,
        match=r"w\.pth: torch\.load\(weights_only=True\) cannot read it \(.*[^.]\)\. Save it",
    ):
        read_state(str(path))


class Command:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("exit 1",)


def test_a_file_that_names_the_operating_system_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": STATE, "extra": Command()}, path)
    with pytest.raises(
        WeightsError, match=r"w\.pth: torch\.load.* cannot read it .* module posix is blocked"
    ):
        read_state(str(path))


def test_other_keys_in_the_file_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(
        {
            "model": {f"module.{key}": value for key, value in STATE.items()},
            "optimizer": {},
            "iteration": 3,
        },
        path,
    )
    file = read_state_file(str(path))
    assert set(file.state) == set(STATE)
    assert (file.others, file.meta) == (("optimizer", "iteration"), {})
