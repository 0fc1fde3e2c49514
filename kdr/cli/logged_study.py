"""The STUDY argument of commands that read the log: a study file or a name in the log."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdr.errors import ConfigError
from kdr.storage.layout import Storage

if TYPE_CHECKING:
    from kdr.results.reader import Log

StudyInLog = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="Study file, or name of a study in the log.", show_default=False
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        "--metric", help="AP, AP50, AP75, APs, APm or APl; default: the metric of the study."
    ),
]

NOT_IN_TABLES = ("losses", "weighted_losses", "gradient_norms")
"""Columns of `epochs` that no table shows. They make up most of a log: reading it without them is
much faster."""


def study_name(argument: str) -> str:
    """Returns the name of a study, given its file or its name.

    Raises:
        ConfigError: if the file cannot be read, or does not name its study.
    """
    # a missing file with this ending is a wrong path, not the name of a study
    if not argument.endswith((".yaml", ".yml")) and not Path(argument).is_file():
        return argument
    from kdr.config.strict_yaml import read_yaml

    name = read_yaml(Path(argument)).get("study")
    if not isinstance(name, str):
        raise ConfigError(f"{argument}: study: must be the name of the study, got {name!r}")
    return name


def read_logged_study(
    argument: str, storage: str | Path, *, leave_out: Collection[str] = ()
) -> "tuple[Log, str]":
    """Returns a study's log and its name; lists unreadable files of the log on standard error.

    Args:
        argument: a study file, or the name of a study.
        storage: the storage of the log.
        leave_out: columns of `epochs` to skip.

    Raises:
        ConfigError: if the log has no such study.
    """
    from kdr.cli.output import warn
    from kdr.results.fragments import logged_studies
    from kdr.results.pandas_free import start_without_pandas
    from kdr.results.reader import read_log

    start_without_pandas()
    place, name = Storage.at(storage), study_name(argument)
    log = read_log(place, name, leave_out=leave_out)
    warn(damage(log))  # the rows of other files are still good
    if not log.keys_of(name):
        known = ", ".join(logged_studies(place)) or "none yet"
        raise ConfigError(
            f"study {name} is not in the log of {place.root} (studies there: {known}). Run it "
            "first, or name its storage with --storage"
        )
    return log, name


def damage(log: "Log") -> list[str]:
    """Returns a warning for each file of the log that was skipped."""
    return [
        f"warning: {path} is damaged or does not belong to the log; its rows are missing here"
        for path in log.damaged
    ]
