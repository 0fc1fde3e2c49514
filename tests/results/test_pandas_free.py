"""Readers of the log start without pandas, which can still be used afterwards."""

import subprocess
from collections.abc import Callable

import pytest

pytest.importorskip("pandas")
CODE = """
import sys
import pyarrow as pa
from kdr.results.pandas_free import start_without_pandas
start_without_pandas()
table = pa.table({"a": [1, 2]})
assert "pandas" not in sys.modules, "pyarrow imports pandas again: another place to block"
import pandas
assert table.to_pandas()["a"].tolist() == [1, 2]
assert pa.array(pandas.Series([1, 2])).to_pylist() == [1, 2]
"""


def test_arrays_are_made_without_pandas_which_works_afterwards(
    python_process: Callable[..., "subprocess.Popen[bytes]"],
) -> None:
    assert python_process(CODE).wait() == 0


def test_without_the_block_pyarrow_imports_pandas(
    python_process: Callable[..., "subprocess.Popen[bytes]"],
) -> None:
    """Once this fails, the workaround can go."""
    code = "import sys, pyarrow as pa; pa.array([1]); sys.exit('pandas' in sys.modules)"
    assert python_process(code).wait() == 1
