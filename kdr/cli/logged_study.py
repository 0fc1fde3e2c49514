"""The argument STUDY of commands that read the log: a study file, or the name of a study in the
log.
"""

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
        "--metric", help="AP, AP50, AP75, APs, APm or APl; by default what the study searches."
    ),
]

NOT_IN_TABLES = ("losses", "weighted_losses", "gradient_norms")
"""Columns of the epochs that no table shows; they are most of a log."""


def study_name(argument: str) -> str:
    """The name of a study that is given by its file or by its name.

    Raises:
        ConfigError: if the file cannot be read, or names no study.
    """
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
    """What the log holds of a study, and its name. Files of the log that could not be read are
    named on standard error.

    Args:
        argument: a study file, or the name of a study.
        storage: where the log lies.
        leave_out: columns of the epochs that are not needed.

    Raises:
        ConfigError: if the log holds nothing of it.
    """
    from kdr.cli.output import warn
    from kdr.results.fragments import logged_studies
    from kdr.results.pandas_free import start_without_pandas
    from kdr.results.reader import read_log

    start_without_pandas()
    place, name = Storage.at(storage), study_name(argument)
    log = read_log(place, name, leave_out=leave_out)
    warn(damage(log))
    if not log.keys_of(name):
        known = ", ".join(logged_studies(place)) or "none yet"
        raise ConfigError(
            f"{argument}: must be a study in the log of {place.root}, got {name!r}. Studies there: "
            f"{known}. Run it first, or name its storage with --storage"
        )
    return log, name


def damage(log: "Log") -> list[str]:
    """One line for each file of the log that was passed over."""
    return [
        f"warning: {path}: is damaged or no part of the log; its rows are missing here"
        for path in log.damaged
    ]
