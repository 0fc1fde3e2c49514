"""`verify`: recomputes every cell of a written table from the log."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.logged_study import NOT_IN_TABLES, read_logged_study
from kdr.cli.options import DEFAULT_STORAGE, JsonOption, StorageOption
from kdr.errors import StorageError


def command(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="File that `kdr table --output` wrote.", show_default=False
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    json_: JsonOption = False,
) -> None:
    """Recompute every cell of a written table from the log.

    The file names its study and options. Rules, spacing, bold type, caption and notes may differ;
    edited numbers, missing rows and results that have since changed are reported. Exit code 1 if a
    cell differs.

    Example: kdr verify paper/ablation.tex
    """
    import dataclasses

    from kdr.report.formatting import json_text
    from kdr.report.tables.verification import verified

    try:
        text = table.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StorageError(f"TABLE: cannot read {table} ({error})") from error
    # a comparison needs the logs of both studies: each is read when the table asks for it
    found = verified(
        text, lambda study: read_logged_study(study, storage, leave_out=NOT_IN_TABLES)[0]
    )
    num = len(found.differences)
    if json_:
        print(json_text({"table": str(table), **dataclasses.asdict(found)}))
    else:
        for one in found.differences:
            print(
                f"{one.row}, {one.column}: written {one.written or 'nothing'}, recomputed "
                f"{one.recomputed or 'nothing'}"
            )
        ending = "" if num == 1 else "s"
        print(
            f"{table}: {found.num_cells} cells recomputed from the log of {found.study}, "
            f"{num or 'no'} difference{ending}"
        )
    if num:
        raise typer.Exit(1)
