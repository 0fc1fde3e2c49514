"""Merges the many small files of a study's log into one, without a lock, also while others write
and read.

The order of steps makes a crash between any two harmless: the merged file does not count before its
manifest is there, and the files that a manifest replaces are deleted by the next compaction only.
So of several processes that compact at once, each has read a complete log, and whichever manifest
wins, no row is lost or seen twice; and a reader that has just listed the folder still finds its
files.
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
    """Merges each table of a study's log into one file. Does nothing where that is done already.

    Raises:
        StorageError: if the log cannot be written; it stays as it was.
    """
    for table in SCHEMAS:
        folder = study_folders(storage, table).get(study)
        if folder is None:
            continue
        try:
            _compact_folder(list_folder(folder, table))
        except FileNotFoundError:
            continue  # another process compacts this folder and is ahead
        except OSError as error:
            raise StorageError(
                f"{folder}: the trial log must be writable, got {error.strerror or error}. Nothing "
                "is lost: compaction can be left out, and is done at the end of the next run"
            ) from error


def _compact_folder(listing: Listing) -> None:
    merged, tables = _readable(listing)
    before = listing.generation
    # a generation that cannot be merged must stay the newest, or its rows would no longer count
    if len(merged) < 2 or (before and listing.folder / before.data not in merged):
        return
    number = before.number + 1 if before else 1
    stem = f"c-{number:06d}-{uuid.uuid4().hex[:8]}"
    gone = before.replaces if before else frozenset()
    left_over = {path.name for path in listed(listing.folder)} & gone
    with (listing.folder / f"{stem}.parquet").written_aside() as aside:
        write_fragment(pa.concat_tables(tables).combine_chunks(), os.fspath(aside))
    with (listing.folder / f"{stem}.json").written_aside() as aside:
        # what an interrupted deletion leaves behind must stay replaced
        aside.write_text(
            json.dumps(
                {"number": number, "replaces": sorted({path.name for path in merged} | left_over)}
            )
        )
    for name in sorted(gone | _outdated(listing.folder, number)):
        (listing.folder / name).unlink(missing_ok=True)


def _readable(listing: Listing) -> tuple[list[StoredPath], list[pa.Table]]:
    """The files to merge, with their rows. Damaged ones stay, to be named; newer versions' stay, to
    keep their columns.
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
    """Files of generations that the newest but one already stood for, and of compactions that died
    half-way.
    """
    numbered = (
        (path.name, match) for path in listed(folder) if (match := _COMPACTED.fullmatch(path.name))
    )
    return {name for name, match in numbered if int(match[1]) < number - 1}
