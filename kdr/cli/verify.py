"""`verify`: whether a written table still says what the log says."""

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
            metavar="TABLE", help="File that `table --output` wrote.", show_default=False
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    json_: JsonOption = False,
) -> None:
    """Compute every cell of a written table again, from the log alone; exit code 1 if one differs.

    The file says itself which study and options it is of. Rules, spacing, bold type, caption and
    notes may be changed; a number that was changed by hand, a row that is missing, and results that
    have changed since are named.

    Example: kdr verify paper/ablation.tex
    """
    import dataclasses

    from kdr.report.formatting import json_text
    from kdr.report.tables.verification import verified

    try:
        text = table.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise StorageError(
            f"TABLE: must be a file that can be read, got {table} ({error})"
        ) from error
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
