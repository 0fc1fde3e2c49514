"""Which weights stay on disk."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.run.kept_weights import KeptWeights
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage


def write(storage: Storage, key: str, name: str = "student.pt") -> StoredPath:
    path = storage.trial(key) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def kept(storage: Storage, keep: Any, values: dict[str, float | None]) -> set[str]:
    weights = KeptWeights(storage, keep)
    for key, value in values.items():
        write(storage, key)
        weights.add(key, value)
    return {key for key in values if (storage.trial(key) / "student.pt").exists()}


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"b"}),
        (2, {"b", "c"}),
        ("all", {"a", "b", "c", "d", "e"}),
        ("none", set()),
        (9, {"a", "b", "c", "d", "e"}),
    ],
)
def test_the_best_are_kept_and_failed_trials_are_the_worst(
    tmp_path: Path, keep: Any, expected: set[str]
) -> None:
    values = {"a": 0.1, "b": 0.4, "c": 0.3, "d": None, "e": math.nan}
    assert kept(Storage.at(tmp_path), keep, values) == expected


def test_of_equal_trials_the_earlier_stays(tmp_path: Path) -> None:
    assert kept(Storage.at(tmp_path), 1, {"first": 0.2, "second": 0.2}) == {"first"}


def test_the_checkpoint_of_a_stopped_trial_goes_with_its_weights(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    path = write(storage, "stopped", "checkpoint.pt")
    KeptWeights(storage, 1, [("stopped", 0.1), ("better", 0.2)])
    assert not path.exists()


def test_a_completed_trial_needs_no_checkpoint_any_more(tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    checkpoint, weights = write(storage, "completed", "checkpoint.pt"), write(storage, "completed")
    KeptWeights(storage, "all", [("completed", 0.1)])
    assert weights.exists()
    assert not checkpoint.exists()


@given(
    values=st.lists(st.floats(0, 1), unique=True, min_size=1, max_size=8), keep=st.integers(1, 8)
)
def test_in_any_order_the_best_k_remain(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], keep: int
) -> None:
    storage = Storage.at(tmp_path_factory.mktemp("storage"))
    found = kept(storage, keep, {str(index): value for index, value in enumerate(values)})
    best = sorted(range(len(values)), key=values.__getitem__)[-keep:]
    assert found == {str(index) for index in best}
