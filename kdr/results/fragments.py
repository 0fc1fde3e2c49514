"""Which files of the log count, and the reading of one: the rules that readers and compaction
share.

A folder of one study and table holds fragments `part-*.parquet`. Compaction adds a generation:
`c-<number>-<id>.parquet` with the rows of many fragments, then `c-<number>-<id>.json` naming the
files it replaces. Only the newest generation counts, and without its manifest it does not exist.
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
    """A file of the log that cannot be read, or holds something else than rows of its table."""


@dataclass(frozen=True)
class Generation:
    """One compaction of a folder."""

    number: int
    """Counts from 1; the highest wins, among equals the highest id."""
    data: str
    """Name of the Parquet file with the merged rows."""
    replaces: frozenset[str]
    """Names of the files in the folder that it stands for."""


@dataclass(frozen=True)
class Listing:
    """The files of one folder that count."""

    folder: StoredPath
    table: TableName
    generation: Generation | None
    """The newest usable compaction."""
    fragments: tuple[StoredPath, ...]
    """Parquet files to read: the compacted one first, then fragments by name, which is by time."""
    damaged: tuple[StoredPath, ...]
    """Compactions that had to be passed over."""


def study_folders(storage: Storage, table: TableName) -> dict[str, StoredPath]:
    """The folders of one table by study, sorted; empty where nothing is logged yet."""
    folders = listed(storage.log / table, "study=*")
    return {folder.name.removeprefix("study="): folder for folder in folders if folder.is_dir()}


def list_folder(folder: StoredPath, table: TableName) -> Listing:
    """The files of a folder that count now."""
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
    """Whether a file of this name has a place in a study's folder; temporary files of writers
    do.
    """
    return _OF_LOG.fullmatch(name) is not None


def num_fragments(storage: Storage, study: str) -> int:
    """How many files a reader of one study's log opens."""
    folders = ((table, study_folders(storage, table).get(study)) for table in SCHEMAS)
    return sum(
        len(list_folder(folder, table).fragments) for table, folder in folders if folder is not None
    )


def logged_studies(storage: Storage) -> tuple[str, ...]:
    """Names of the studies that have a folder in the log, sorted."""
    return tuple(sorted({study for table in SCHEMAS for study in study_folders(storage, table)}))


def files_by_key(storage: Storage, keys: Collection[str]) -> dict[str, list[StoredPath]]:
    """The files of the log that hold events or epochs of some trials, by trial key; files that
    cannot be read are left out.
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
    """The rows of one file with the table's schema; columns of a newer version are left out.

    Args:
        path: the file.
        table: the table that it is a part of.
        keys: only rows of these trials; of a file that has none of them, nothing but the keys is
            read.
        leave_out: columns that are not read; all their values are null.

    Raises:
        FileNotFoundError: if it is gone, as after a compaction.
        DamagedFragmentError: if it is truncated, or no fragment of this table.
        StorageError: if the storage does not give it; it may be sound, and to go on without it
            would run its trials again.
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
        # the system's own errors have a number, those of Parquet's content have none
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(
                f"{path}: must be a file that can be read, got {error}. Nothing is lost: try again"
            ) from error
        raise DamagedFragmentError(f"{path}: {error}") from error


def is_newer_version(path: StoredPath) -> bool:
    """Whether a fragment comes from a newer version, whose columns this one does not know."""
    metadata = pq.read_schema(path.arrow_source()).metadata or {}
    return int(metadata.get(b"kdr.schema_version", SCHEMA_VERSION)) > SCHEMA_VERSION


def _conforming(found: pa.Table, table: TableName) -> pa.Table:
    schema = SCHEMAS[table]
    if (found.schema.metadata or {}).get(b"kdr.table") != table.encode():
        raise ValueError(f"holds no rows of the table {table}")
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
    # a Parquet file ends with its footer, so a torn one is found here, while the files that it
    # replaces may still be there
    pq.read_metadata(manifest.with_suffix(".parquet").arrow_source())
    return generation
