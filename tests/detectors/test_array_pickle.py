"""Reading pickles of numpy arrays, in every form that numpy writes, without running their code."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdr.detectors.array_pickle import read_array_pickle
from kdr.detectors.state_file import read_state_file
from kdr.errors import WeightsError


def explode() -> None:
    raise AssertionError("was run")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return explode, ()


def arrays() -> dict[str, np.ndarray[Any, Any]]:
    draw = np.random.default_rng(0)
    return {
        "float32": draw.normal(size=(2, 3, 1)).astype(np.float32),
        "float64": draw.normal(size=5),
        "by column": np.asfortranarray(draw.normal(size=(3, 4)).astype(np.float32)),
        "half": draw.normal(size=3).astype(np.float16),
        "int64": np.arange(4),
        "bytes": np.arange(7, dtype=np.uint8),
        "truth": np.array([True, False]),
        "no axis": np.array(3.5),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "strided": np.arange(12.0)[::3],
    }


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_kind_become_equal_tensors(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(
        pickle.dumps({"model": arrays(), "__author__": "zoo", "epoch": 3}, protocol=protocol)
    )
    content: Any = read_array_pickle(path)
    assert (content["__author__"], content["epoch"]) == ("zoo", 3)
    for name, array in arrays().items():
        expected = torch.from_numpy(array.copy(order="C"))
        assert content["model"][name].dtype == expected.dtype, name
        assert torch.equal(content["model"][name], expected), name


class AsPython2Wrote:
    """Pickles an array with its bytes as text."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        reduced: Any = self.array.__reduce__()
        build, arguments, (version, shape, dtype, by_column, content) = reduced
        return build, arguments, (version, shape, dtype, by_column, content.decode("latin1"))


def test_arrays_that_python_2_pickled_as_text_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    array = np.array([1.5, -2.0, 1e-30], dtype=np.float32)
    path.write_bytes(pickle.dumps({"w": AsPython2Wrote(array)}, protocol=2))
    content: Any = read_array_pickle(path)
    assert torch.equal(content["w"], torch.from_numpy(array))


def test_an_ordered_dict_of_arrays_under_model_is_a_state_dict(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pkl"
    path.write_bytes(
        pickle.dumps(
            {
                "model": OrderedDict(a=np.ones(2, np.float32)),
                "__author__": "zoo",
                "size": np.int64(3),
            }
        )
    )
    file = read_state_file(str(path))
    assert torch.equal(file.state["a"], torch.ones(2))
    assert file.others == ("__author__", "size")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(pickle.dumps({"model": Bomb()}), r"\S*explode\)", id="code"),
        pytest.param(
            pickle.dumps({"w": np.array([Bomb()], dtype=object)}),
            r"\S*explode\)",
            id="code in an array",
        ),
        pytest.param(pickle.dumps({"w": np.array(["a"])}), r"an array of <U1", id="text"),
        pytest.param(pickle.dumps({"w": np.ones(2, ">f4")}), r"an array of >f4", id="big endian"),
        pytest.param(
            pickle.dumps({"w": torch.ones(2)}),
            r"torch\._utils\._rebuild_tensor_v2",
            id="tensors",
        ),
        pytest.param(pickle.dumps(arrays())[:300], "", id="truncated"),
        pytest.param(b"", "Ran out of input", id="empty"),
        pytest.param(b"PK\x03\x04", "", id="a zip file"),
        pytest.param(b"cposix\nsystem\n(S'true'\ntR.", r"posix\.system", id="a command"),
    ],
)
def test_everything_else_is_refused_with_a_hint(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(
        WeightsError,
        match=(
            r"model\.pkl: not a pickle of only numpy arrays and plain values "
            rf"\({reason}.*\. Convert it"
        ),
    ):
        read_array_pickle(path)
