"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="Study file, such as quickstart.yaml.", show_default=False
    ),
]
StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        metavar="PLACE",
        envvar="KDR_STORAGE",
        help=(
            "Where the log, checkpoints and weights are stored: a folder, s3://bucket/prefix or "
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
            "Ray cluster to join; this machine must be one of its nodes. Without it, Ray starts on "
            "this machine."
        ),
    ),
]
SendCodeOption = Annotated[
    bool,
    typer.Option(
        "--send-code",
        help="Send this copy of kdr to the cluster's nodes, in place of the one installed there.",
    ),
]

PreflightOption = Annotated[
    bool,
    typer.Option(
        "--preflight/--no-preflight",
        help=(
            "Check a cluster's nodes and the study's base trial first: the teacher's AP, losses, "
            "gradients."
        ),
    ),
]

TrialKey = Annotated[
    str,
    typer.Argument(
        metavar="KEY",
        help="Key of a trial, or at least its first 6 characters.",
        show_default=False,
    ),
]

DEFAULT_STORAGE = "runs"
