"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[Path, typer.Argument(help="Study file, such as search_spaces/quickstart.yaml.", show_default=False)]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="PLACE",
        envvar="KDR_STORAGE",
        help="Where the log, checkpoints and weights lie: a folder, s3://bucket/prefix or gs://bucket/prefix.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a setting, such as --set training.epochs=24. May be repeated."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

PreflightOption = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help="Look at the study's base trial before it starts: the teacher's AP, masks, losses, gradients.",
    ),
]

TrialKey = Annotated[
    str, typer.Argument(metavar="KEY", help="A trial's key, or its first letters, at least 6.", show_default=False)
]

DEFAULT_STORAGE = "runs"
