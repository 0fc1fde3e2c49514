"""Lists and reads the files of the log that count, for readers and compaction.

Each study and table has a folder of fragments `part-*.parquet`. Compaction adds a generation:
`c-<number>-<id>.parquet` with the rows of many fragments, then the manifest `c-<number>-<id>.json`
with the names of the files that it replaces. Only the newest generation with a manifest counts.
Everything else in the folder is ignored.
"""

import contextlib
import fnmatch
import json
import re
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdr.errors import StorageError
from kdr.results.schema import SCHEMA_VERSION, SCHEMAS, TableName
from kdr.storage.files import StoredPath, listed
from kdr.storage.layout import Storage

_MANIFEST = re.compile(r"c-(\d+)-[0-9a-f]+\.json")
_OF_LOG = re.compile(rf"part-.+\.parquet|c-\d+-[0-9a-f]+\.parquet|{_MANIFEST.pattern}|\..+\.tmp")


class DamagedFragmentError(Exception):
    """A file of the log that is unreadable, or does not have rows of its table."""


@dataclass(frozen=True)
class Generation:
    """One compaction of a folder."""

    number: int
    """Counts from 1. The highest number wins; among equal numbers, the highest id."""
    data: str
    """Name of the Parquet file with the merged rows."""
    replaces: frozenset[str]
    """Names of the files in the folder that it replaces."""


@dataclass(frozen=True)
class Listing:
    """The files of a folder that count."""

    folder: StoredPath
    table: TableName
    generation: Generation | None
    """The newest usable compaction."""
    fragments: tuple[StoredPath, ...]
    """Parquet files to read: the compacted one, then fragments by name, and so by time."""
    damaged: tuple[StoredPath, ...]
    """Manifests of unusable compactions."""


def study_folders(storage: Storage, table: TableName) -> dict[str, StoredPath]:
    """Returns the folders of a table by study, sorted; empty if nothing is logged yet."""
    folders = listed(storage.log / table, "study=*")
    return {folder.name.removeprefix("study="): folder for folder in folders if folder.is_dir()}


def list_folder(folder: StoredPath, table: TableName) -> Listing:
    """Returns the files of a folder that count now."""
    damaged: list[StoredPath] = []
    generation = None
    files = listed(folder)
    for manifest in _newest_first(files):
        try:
            generation = _generation(manifest)
            break
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            damaged.append(manifest)
    replaced = generation.replaces if generation else frozenset()
    parts = [
        path
        for path in files
        if fnmatch.fnmatchcase(path.name, "part-*.parquet") and path.name not in replaced
    ]
    compacted = [folder / generation.data] if generation else []
    return Listing(folder, table, generation, (*compacted, *parts), tuple(damaged))


def is_of_log(name: str) -> bool:
    """Returns whether a file with this name belongs in a study's folder; temporary files do."""
    return _OF_LOG.fullmatch(name) is not None


def num_fragments(storage: Storage, study: str) -> int:
    """Returns the number of files that a reader of a study's log opens."""
    folders = ((table, study_folders(storage, table).get(study)) for table in SCHEMAS)
    return sum(
        len(list_folder(folder, table).fragments) for table, folder in folders if folder is not None
    )


def logged_studies(storage: Storage) -> tuple[str, ...]:
    """Returns the names of the studies in the log, sorted."""
    return tuple(sorted({study for table in SCHEMAS for study in study_folders(storage, table)}))


def files_by_key(storage: Storage, keys: Collection[str]) -> dict[str, list[StoredPath]]:
    """Returns the files of the log with events or epochs of some trials, by trial key. Unreadable
    files are skipped.
    """
    wanted, files = pa.array(list(keys), pa.string()), dict[str, list[StoredPath]]()
    for table in ("trials", "epochs"):
        for folder in study_folders(storage, table).values():
            for path in list_folder(folder, table).fragments:
                with contextlib.suppress(OSError, pa.ArrowException):
                    source = path.arrow_source()
                    found = pc.unique(
                        pq.read_table(source, columns=["key"], partitioning=None)["key"]
                    )
                    for key in found.filter(pc.is_in(found, value_set=wanted)).to_pylist():
                        files.setdefault(key, []).append(path)
    return files


def read_fragment(
    path: StoredPath,
    table: TableName,
    keys: pa.Array | None = None,
    leave_out: Collection[str] = (),
) -> pa.Table:
    """Returns the rows of a file in the table's schema, without columns of newer versions.

    Args:
        path: the file.
        table: the table that it belongs to.
        keys: return only rows of these trials. If the file has none of them, only its keys are
            read.
        leave_out: columns not to read; their values are null.

    Raises:
        FileNotFoundError: if the file is gone, as after a compaction.
        DamagedFragmentError: if it is truncated, or not a fragment of this table.
        StorageError: if the storage cannot read it. The file may be intact, so it must not be
            skipped: its finished trials would run again.
    """
    try:
        with pq.ParquetFile(
            path.arrow_source(), pre_buffer=False, page_checksum_verification=True
        ) as file:
            columns = [name for name in file.schema_arrow.names if name not in leave_out]
            known = (
                None
                if keys is None
                else pc.is_in(file.read(["key"], use_threads=False)["key"], value_set=keys)
            )
            if known is not None and not pc.any(known).as_py():
                found = file.schema_arrow.empty_table()
            else:
                found = file.read(columns, use_threads=False)
                found = found if known is None else found.filter(known)
        return _conforming(found, table)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        # pyarrow raises OSError for both: with an errno if the system failed, without one if the
        # content is not Parquet
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(
                f"{path}: cannot be read ({error}). Nothing is lost: try again"
            ) from error
        raise DamagedFragmentError(f"{path}: {error}") from error


def is_newer_version(path: StoredPath) -> bool:
    """Returns whether a newer version of kdr wrote a fragment, possibly with unknown columns."""
    metadata = pq.read_schema(path.arrow_source()).metadata or {}
    return int(metadata.get(b"kdr.schema_version", SCHEMA_VERSION)) > SCHEMA_VERSION


def _conforming(found: pa.Table, table: TableName) -> pa.Table:
    schema = SCHEMAS[table]
    if (found.schema.metadata or {}).get(b"kdr.table") != table.encode():
        raise ValueError(f"does not have rows of the table {table}")
    if found.schema.equals(schema):
        return found.replace_schema_metadata(schema.metadata)
    columns = []
    for column in schema:
        if column.name in found.schema.names:
            columns.append(found.column(column.name).cast(column.type))
        elif column.nullable:
            columns.append(pa.nulls(len(found), column.type))
        else:
            raise ValueError(f"lacks the column {column.name}")
    return pa.Table.from_arrays(columns, schema=schema)


def _newest_first(files: list[StoredPath]) -> list[StoredPath]:
    manifests = [path for path in files if _MANIFEST.fullmatch(path.name)]
    return sorted(
        manifests, key=lambda path: (int(path.name.split("-")[1]), path.name), reverse=True
    )


def _generation(manifest: StoredPath) -> Generation:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    generation = Generation(
        content["number"], manifest.with_suffix(".parquet").name, frozenset(content["replaces"])
    )
    # A Parquet file ends with its footer, so this detects a truncated file while the files that it
    # replaces may still exist.
    pq.read_metadata(manifest.with_suffix(".parquet").arrow_source())
    return generation
