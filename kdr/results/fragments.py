"""Which files of the log count, and the reading of one: the rules that readers and compaction share.

A folder of one study and table holds fragments `part-*.parquet`. Compaction adds a generation: `c-<number>-<id>.parquet` with
the rows of many fragments, then `c-<number>-<id>.json` naming the files it replaces. Only the newest generation counts, and
without its manifest it does not exist. Everything else in the folder is ignored.
"""

import contextlib
import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kdr.results.schema import SCHEMA_VERSION, SCHEMAS, TableName
from kdr.storage import Storage

_MANIFEST = re.compile(r"c-(\d+)-[0-9a-f]+\.json")


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

    folder: Path
    table: TableName
    generation: Generation | None
    """The newest usable compaction."""
    fragments: tuple[Path, ...]
    """Parquet files to read: the compacted one first, then fragments by name, which is by time."""
    damaged: tuple[Path, ...]
    """Compactions that had to be passed over."""


def study_folders(storage: Storage, table: TableName) -> dict[str, Path]:
    """The folders of one table by study, sorted; empty where nothing is logged yet."""
    root = storage.log / table
    folders = sorted(root.glob("study=*")) if root.is_dir() else []
    return {folder.name.removeprefix("study="): folder for folder in folders if folder.is_dir()}


def list_folder(folder: Path, table: TableName) -> Listing:
    """The files of a folder that count now."""
    damaged: list[Path] = []
    generation = None
    for manifest in _newest_first(folder):
        try:
            generation = _generation(manifest)
            break
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            damaged.append(manifest)
    replaced = generation.replaces if generation else frozenset()
    parts = sorted(path for path in folder.glob("part-*.parquet") if path.name not in replaced)
    compacted = [folder / generation.data] if generation else []
    return Listing(folder, table, generation, (*compacted, *parts), tuple(damaged))


def num_fragments(storage: Storage, study: str) -> int:
    """How many files a reader of one study's log opens."""
    folders = ((table, study_folders(storage, table).get(study)) for table in SCHEMAS)
    return sum(len(list_folder(folder, table).fragments) for table, folder in folders if folder is not None)


def logged_studies(storage: Storage) -> tuple[str, ...]:
    """Names of the studies that have a folder in the log, sorted."""
    return tuple(sorted({study for table in SCHEMAS for study in study_folders(storage, table)}))


def files_by_key(storage: Storage, keys: Collection[str]) -> dict[str, list[Path]]:
    """The files of the log that hold events or epochs of some trials, by trial key; files that cannot be read are left out."""
    wanted, files = pa.array(list(keys), pa.string()), dict[str, list[Path]]()
    for table in ("trials", "epochs"):
        for folder in study_folders(storage, table).values():
            for path in list_folder(folder, table).fragments:
                with contextlib.suppress(OSError, pa.ArrowException):
                    found = pc.unique(pq.read_table(path, columns=["key"], partitioning=None)["key"])
                    for key in found.filter(pc.is_in(found, value_set=wanted)).to_pylist():
                        files.setdefault(key, []).append(path)
    return files


def read_fragment(path: Path, table: TableName, keys: pa.Array | None = None, leave_out: Collection[str] = ()) -> pa.Table:
    """The rows of one file with the table's schema; columns of a newer version are left out.

    Args:
        path: the file.
        table: the table that it is a part of.
        keys: only rows of these trials; of a file that has none of them, nothing but the keys is read.
        leave_out: columns that are not read; all their values are null.

    Raises:
        FileNotFoundError: if it is gone, as after a compaction.
        DamagedFragmentError: if it is truncated, or no fragment of this table.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            columns = [name for name in file.schema_arrow.names if name not in leave_out]
            known = None if keys is None else pc.is_in(file.read(["key"], use_threads=False)["key"], value_set=keys)
            if known is not None and not pc.any(known).as_py():
                found = file.schema_arrow.empty_table()
            else:
                found = file.read(columns, use_threads=False)
                found = found if known is None else found.filter(known)
        return _conforming(found, table)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        raise DamagedFragmentError(f"{path}: {error}") from error


def is_newer_version(path: Path) -> bool:
    """Whether a fragment comes from a newer version, whose columns this one does not know."""
    metadata = pq.read_schema(path).metadata or {}
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


def _newest_first(folder: Path) -> Iterator[Path]:
    numbered = ((int(match[1]), path.name, path) for path in folder.iterdir() if (match := _MANIFEST.fullmatch(path.name)))
    return (path for *_, path in sorted(numbered, reverse=True))


def _generation(manifest: Path) -> Generation:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    generation = Generation(content["number"], manifest.with_suffix(".parquet").name, frozenset(content["replaces"]))
    # a Parquet file ends with its footer, so a torn one is found here, while the files that it replaces may still be there
    pq.read_metadata(manifest.with_suffix(".parquet"))
    return generation
