"""Merges the small files of a study's log into one, without a lock, while others read and write.

The order of the steps makes a crash between any two of them harmless. The merged file does not
count until its manifest is written, and the files that a manifest replaces are deleted only by the
next compaction. So if several processes compact at once, each has read a complete log, and no row
is lost or counted twice, whichever manifest wins. A reader that has just listed the folder still
finds its files.
"""

import json
import os
import re
import uuid

import pyarrow as pa

from kdr.errors import StorageError
from kdr.results.fragments import (
    DamagedFragmentError,
    Listing,
    is_newer_version,
    list_folder,
    read_fragment,
    study_folders,
)
from kdr.results.schema import SCHEMAS
from kdr.results.writer import write_fragment
from kdr.storage.files import StoredPath, listed
from kdr.storage.layout import Storage

_COMPACTED = re.compile(r"c-(\d+)-[0-9a-f]+\.(parquet|json)")


def compact(storage: Storage, study: str) -> None:
    """Merges each table of a study's log into one file, unless it already is one.

    Raises:
        StorageError: if the log cannot be written; it is then unchanged.
    """
    for table in SCHEMAS:
        folder = study_folders(storage, table).get(study)
        if folder is None:
            continue
        try:
            _compact_folder(list_folder(folder, table))
        except FileNotFoundError:
            continue  # another process is compacting this folder too, and is ahead
        except OSError as error:
            raise StorageError(
                f"{folder}: the trial log must be writable, got {error.strerror or error}. Nothing "
                "is lost: the next run compacts it at its end"
            ) from error


def _compact_folder(listing: Listing) -> None:
    merged, tables = _readable(listing)
    before = listing.generation
    # A damaged generation must stay the newest: a newer one without its rows would lose them.
    if len(merged) < 2 or (before and listing.folder / before.data not in merged):
        return
    number = before.number + 1 if before else 1
    stem = f"c-{number:06d}-{uuid.uuid4().hex[:8]}"
    # Replaced by the previous compaction and deleted only now, because a reader that listed the
    # folder before that compaction may still have been opening them.
    gone = before.replaces if before else frozenset()
    left_over = {path.name for path in listed(listing.folder)} & gone
    with (listing.folder / f"{stem}.parquet").written_aside() as aside:
        write_fragment(pa.concat_tables(tables).combine_chunks(), os.fspath(aside))
    with (listing.folder / f"{stem}.json").written_aside() as aside:
        # files that the deletion below may leave behind if it is interrupted must stay replaced
        aside.write_text(
            json.dumps(
                {"number": number, "replaces": sorted({path.name for path in merged} | left_over)}
            )
        )
    for name in sorted(gone | _outdated(listing.folder, number)):
        (listing.folder / name).unlink(missing_ok=True)


def _readable(listing: Listing) -> tuple[list[StoredPath], list[pa.Table]]:
    """Returns the files to merge, with their rows.

    Damaged files are left, so that `log check` can report them; files of newer versions are left,
    because merging would drop the columns that this version does not know.
    """
    merged, tables = [], []
    for path in listing.fragments:
        try:
            table = read_fragment(path, listing.table)
        except DamagedFragmentError:
            continue
        if not is_newer_version(path):
            merged.append(path)
            tables.append(table)
    return merged, tables


def _outdated(folder: StoredPath, number: int) -> set[str]:
    """Returns files of generations before the last two, and of compactions that were killed."""
    numbered = (
        (path.name, match) for path in listed(folder) if (match := _COMPACTED.fullmatch(path.name))
    )
    return {name for name, match in numbered if int(match[1]) < number - 1}
