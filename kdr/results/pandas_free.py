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
    """Creates pyarrow's first array with pandas blocked, so that pyarrow does not import it.

    The import takes as long as reading a small log (pandas 2 and 3, pyarrow 26): pyarrow's
    `_PandasAPIShim` looks for pandas once, to recognise a Series. A later `to_pandas()` still
    imports pandas. For kdr's own commands, not for a library: pyarrow then treats a Series as any
    other sequence.
    """
    if "pandas" in sys.modules:
        return
    blocked = _PandasBlocked()
    sys.meta_path.insert(0, blocked)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(blocked)
