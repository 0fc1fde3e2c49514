"""Options that several commands share, so that they read the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[
    Path,
    typer.Argument(help="Study file, such as search_spaces/quickstart.yaml.", show_default=False),
]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="PLACE",
        envvar="KDR_STORAGE",
        help=(
            "Where the log, checkpoints and weights lie: a folder, s3://bucket/prefix or "
            "gs://bucket/prefix."
        ),
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a setting, such as --set training.epochs=24. May be repeated.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        metavar="HOST:PORT|auto",
        help=(
            "Ray cluster to join, of which this machine is a node; without it Ray starts on this "
            "machine."
        ),
    ),
]
SendCodeOption = Annotated[
    bool,
    typer.Option(
        "--send-code",
        help="Have the nodes of the cluster run this kdr, not what is installed there.",
    ),
]

PreflightOption = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help=(
            "Look at a cluster's nodes and at the study's base trial before it starts: the "
            "teacher's AP, losses, gradients."
        ),
    ),
]

TrialKey = Annotated[
    str,
    typer.Argument(
        metavar="KEY", help="A trial's key, or its first letters, at least 6.", show_default=False
    ),
]

DEFAULT_STORAGE = "runs"
