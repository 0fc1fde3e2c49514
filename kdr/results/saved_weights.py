"""Checks that a file written by torch is intact, without torch and without unpickling it."""

import struct
import zipfile

from kdr.storage.files import StoredPath


def file_damage(path: StoredPath, *, read_all: bool = True) -> str | None:
    """Returns the damage to a checkpoint or weights file as text; None if it is intact.

    torch ignores the checksums in its files, and would resume from a checkpoint with a flipped bit.

    Args:
        path: the file.
        read_all: verify the checksum of every entry, which reads the whole file; otherwise only
            check its end.

    Raises:
        OSError: if it cannot be read.
    """
    if not read_all and path.appears_whole:
        return None
    try:
        with path.fetched() as local, zipfile.ZipFile(local) as archive:
            entry = archive.testzip() if read_all else None
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        # RuntimeError, because a damaged header may declare encryption, or a compression method
        # that zipfile does not have
        return f"is truncated, or was not written by torch ({error})"
    return None if entry is None else f"is damaged in its entry {entry}"
