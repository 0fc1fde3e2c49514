"""Writes study files for `--export`."""

from pathlib import Path

from kdr.errors import StorageError
from kdr.storage.local_path import LocalPath


def write_study_file(text: str, path: Path) -> None:
    """Writes a study file.

    Raises:
        StorageError: if it cannot be written.
    """
    try:
        with LocalPath(path).absolute().written_aside() as aside:
            aside.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"--export: needs a file that can be written, got {path} ({error.strerror or error})"
        ) from error
