"""Reads pickles of numpy arrays (detectron2's model zoo) without running their code.

`pickle.load` calls any function that a file names. Here the few names that an array needs map to
plain records, and every other name is an error.
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
"""numpy's code of an element type -> torch's type."""


def read_array_pickle(path: Path) -> object:
    """Returns the content of a pickle: plain values unchanged, numpy arrays as tensors.

    Raises:
        WeightsError: if the file is damaged, or contains anything but arrays and plain values.
    """
    try:
        with path.open("rb") as file:
            # Python 2 pickled the bytes of arrays as text; in latin1 each character is one byte
            return _with_tensors(_ArraysOnly(file, encoding="latin1").load())
    # a damaged pickle can raise any of these, because its opcodes build arbitrary values
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
            f"{path}: not a pickle of only numpy arrays and plain values ({reason}). Convert it "
            "where its library is installed: torch.save({'model': model.state_dict()}, "
            "'teacher.pth')"
        ) from error


class _DType:
    """Stands in for `numpy.dtype`: a code such as `f4`, and the byte order."""

    def __init__(self, name: str, *_: object) -> None:
        self.name, self.order = name, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stands in for `numpy.ndarray`: shape, type, memory order and content."""

    def __init__(self, *_: object) -> None:
        """Accepts the arguments of numpy's constructor; `__setstate__` has the content."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.dtype, self.is_fortran, self.content = state

    def tensor(self) -> torch.Tensor:
        dtype = _TYPES.get(self.dtype.name)
        # torch has no big-endian tensors
        if dtype is None or self.dtype.order == ">":
            raise ValueError(f"an array of {self.dtype.order}{self.dtype.name}")
        content = self.content.encode("latin1") if isinstance(self.content, str) else self.content
        elements = (
            torch.frombuffer(bytearray(content), dtype=dtype)
            if content
            else torch.empty(0, dtype=dtype)
        )
        if self.is_fortran:
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
    """Returns the content of an empty array, which protocol 2 writes as a call of `bytes`."""
    return b""


def _scalar(*_: object) -> None:
    """Drops a numpy scalar; a state_dict has none."""


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
"""Name in a pickle -> its stand-in. numpy 2 renamed `numpy.core` to `numpy._core`."""


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
