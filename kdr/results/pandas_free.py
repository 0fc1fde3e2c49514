"""Keeps pyarrow from importing pandas, for commands that only read the log."""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _PandasBlocked(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ImportError(name=fullname)
        return None


def start_without_pandas() -> None:
    """Makes pyarrow's first array without pandas, which it would import to ask whether it is one.

    That import takes as long as reading a small log (pandas 2 and 3, pyarrow 26; apache/arrow
    looks for pandas once, in `_PandasAPIShim`). A later `to_pandas()` still imports it. For kdr's
    own commands, not for a library: pyarrow then takes a Series for any sequence.
    """
    if "pandas" in sys.modules:
        return
    blocked = _PandasBlocked()
    sys.meta_path.insert(0, blocked)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(blocked)
