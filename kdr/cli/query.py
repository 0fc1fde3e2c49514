"""`query`: runs SQL over the trial log."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption
from kdr.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

QueryFormat = Literal["table", "csv", "json", "parquet"]


def command(
    sql: Annotated[
        str,
        typer.Argument(
            metavar="SQL", help="A SELECT statement (DuckDB's SQL).", show_default=False
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    format_: Annotated[
        QueryFormat | None,
        typer.Option(
            "--format", help="Format; by default that of --output's ending, else a table."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default=False)
    ] = None,
) -> None:
    """Query the trial log with SQL.

    Tables: trials (a row per study and trial, with state, metrics and a column per setting),
    epochs, arms, events. Names with dots need double quotes. Statements can neither read nor change
    files.

    For example:

    kdr query 'SELECT study, state, count(*) FROM trials GROUP BY ALL'

    kdr query 'SELECT "distill.kdr.weight", AP FROM trials ORDER BY AP DESC LIMIT 5'

    kdr query "SELECT key, epoch, losses['kdr'] AS loss FROM epochs" --output losses.csv
    """
    from kdr.cli.logged_study import damage
    from kdr.cli.output import print_table, warn
    from kdr.results.pandas_free import start_without_pandas
    from kdr.results.sql import query
    from kdr.storage.layout import Storage

    chosen = format_ or _format_of(output)
    if chosen == "parquet" and output is None:
        raise ConfigError("--format: parquet needs a file. Add --output FILE")
    start_without_pandas()
    answer = query(Storage.at(storage), sql, on_log=lambda log: warn(damage(log)))
    if output is not None:
        _write(answer, output, chosen)
    elif chosen != "parquet":  # parquet always has a file
        print_table(*_cells(answer), format=chosen)


def _format_of(output: Path | None) -> QueryFormat:
    endings: dict[str, QueryFormat] = {".csv": "csv", ".json": "json", ".parquet": "parquet"}
    return endings.get(output.suffix.lower(), "table") if output else "table"


def _cells(answer: "pa.Table") -> tuple[list[str], list[tuple[object, ...]]]:
    values = [column.to_pylist(maps_as_pydicts="lossy") for column in answer.columns]
    return answer.column_names, list(zip(*values, strict=True))


def _write(answer: "pa.Table", path: Path, chosen: QueryFormat) -> None:
    import pyarrow.parquet as pq

    from kdr.cli.output import csv_text, plain_table
    from kdr.cli.output_file import output_file
    from kdr.report.formatting import json_text

    columns, rows = _cells(answer)
    with output_file(path, option="--output") as aside:
        if chosen == "parquet":
            pq.write_table(answer, aside, compression="zstd")
        elif chosen == "csv":
            aside.write_text(csv_text(columns, rows), encoding="utf-8")
        elif chosen == "json":
            records = [dict(zip(columns, row, strict=True)) for row in rows]
            aside.write_text(json_text(records) + "\n", encoding="utf-8")
        else:
            aside.write_text(plain_table(columns, rows) + "\n", encoding="utf-8")
