"""Reads a pickle of numpy arrays, as detectron2's model zoo has them, into tensors; it can hold
nothing else, and runs nothing.

`pickle.load` runs whatever a file says. Here the few names that an array needs are replaced by
plain records of what it consists of, and every other name is an error.
"""

import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kdr.errors import WeightsError

_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "b1": torch.bool,
}
"""numpy's name of an element's type -> torch's."""


def read_array_pickle(path: Path) -> object:
    """Returns the content of a pickle: plain values as they are, numpy arrays as tensors.

    Raises:
        WeightsError: if the file is damaged, or names anything beside arrays and plain values.
    """
    try:
        with path.open("rb") as file:
            # arrays that Python 2 pickled are text, one character a byte
            return _with_tensors(_ArraysOnly(file, encoding="latin1").load())
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        RuntimeError,
        OSError,
    ) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".,")
        raise WeightsError(
            f"{path}: must be a pickle of numpy arrays and plain values, got {reason}. Convert it "
            "where its library is installed: torch.save({'model': model.state_dict()}, "
            "'teacher.pth')"
        ) from error


class _DType:
    """The type of an array's elements: a name such as `f4`, and the order of its bytes."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """What an array consists of."""

    def __init__(self, *_: object) -> None:
        """Takes what numpy's own constructor gets, an empty array of no shape."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.by_column, self.content = state

    def tensor(self) -> torch.Tensor:
        dtype = _TYPES.get(self.dtype.name)
        if dtype is None or self.dtype.order == ">":
            raise ValueError(f"an array of {self.dtype.order}{self.dtype.name}")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        elements = (
            torch.frombuffer(bytearray(content), dtype=dtype)
            if content
            else torch.empty(0, dtype=dtype)
        )
        if self.by_column:
            return (
                elements.reshape(self.shape[::-1])
                .permute(*reversed(range(len(self.shape))))
                .contiguous()
            )
        return elements.reshape(self.shape)


def _array_of_buffer(content: bytes, dtype: _DType, shape: tuple[int, ...], order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(content)))
    return array


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"text in {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """What an empty array holds, as Python 2 could read it."""
    return b""


def _scalar(*_: object) -> None:
    """A single number of numpy's; none belongs to a state_dict."""


_NAMES: dict[str, Any] = {
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.numeric._frombuffer": _array_of_buffer,
    "numpy._core.numeric._frombuffer": _array_of_buffer,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "_codecs.encode": _latin1,
    "__builtin__.bytes": _no_bytes,
    "collections.OrderedDict": OrderedDict,
}
"""Name in a pickle -> what stands in for it."""


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _NAMES.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return found


def _with_tensors(value: object) -> object:
    if isinstance(value, _Array):
        return value.tensor()
    return (
        {key: _with_tensors(inner) for key, inner in value.items()}
        if isinstance(value, Mapping)
        else value
    )
