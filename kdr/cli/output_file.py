"""Files that a user names with `--output` or `--export`."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from kdr.errors import StorageError
from kdr.storage.local_path import LocalPath


@contextlib.contextmanager
def output_file(path: Path, *, option: str) -> Iterator[Path]:
    """Yields a temporary path, which replaces `path` once the block ends without an error.

    Raises:
        StorageError: if the file cannot be written.
    """
    try:
        with LocalPath(path).absolute().written_aside() as aside:
            yield aside
    except OSError as error:
        raise StorageError(f"{option}: cannot write {path} ({error.strerror or error})") from error


def write_output(text: str, path: Path, *, option: str) -> None:
    """Writes a text to a file.

    Raises:
        StorageError: if it cannot be written.
    """
    with output_file(path, option=option) as aside:
        aside.write_text(text, encoding="utf-8")
