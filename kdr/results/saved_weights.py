"""Whether a file that torch wrote is whole, told from its archive: no torch is needed, and nothing
in it is run.
"""

import struct
import zipfile

from kdr.storage.files import StoredPath


def what_is_torn(path: StoredPath, *, read_all: bool = True) -> str | None:
    """What is wrong with a checkpoint or a weights file; None if it is whole.

    torch itself does not look at the checksums in its files, and would go on from a checkpoint with
    a changed bit.

    Args:
        path: the file.
        read_all: compare the checksum of every entry, which reads all of it; otherwise only whether
            its end is there.

    Raises:
        OSError: if it cannot be read.
    """
    if not read_all and path.appears_whole:
        return None
    try:
        with path.fetched() as local, zipfile.ZipFile(local) as archive:
            entry = archive.testzip() if read_all else None
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, struct.error) as error:
        # RuntimeError: a damaged header may ask for a password, or for a method that zipfile does
        # not have
        return f"is cut off, or was not written by torch ({error})"
    return None if entry is None else f"is damaged in its part {entry}"
