"""A run in the background: `run --detach`."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import kdr
from kdr.cli.options import DEFAULT_STORAGE
from kdr.errors import BusyError, DataError, StorageError

if TYPE_CHECKING:
    from kdr.config.study import Study
    from kdr.storage.layout import Storage


@dataclass(frozen=True)
class DetachedRun:
    """A run that was started in the background."""

    study: str
    pid: int
    output: str
    """File with the output of the run, on this machine."""
    log: str
    """The trial log."""
    watch: str
    """The command that watches the run."""
    stop: str
    """The command that ends the run by SIGTERM: running epochs may finish."""

    def text(self) -> str:
        """Returns the lines for people."""
        return (
            f"Study {self.study} is running in the background (pid {self.pid})\n"
            f"Output: {self.output}\n\n"
            f"{self.watch}    # watch it\n"
            f"{self.stop}    # end it; the same command resumes it"
        )

    def json(self) -> str:
        """Returns the object for programs."""
        from kdr.report.formatting import json_text

        return json_text(asdict(self))


def start_detached(
    study: "Study", storage: "Storage", arguments: Sequence[str], *, storage_option: str
) -> DetachedRun:
    """Starts a run in a process and a session of its own, and returns at once.

    Args:
        study: the study, read and checked.
        storage: where its log and results go.
        arguments: arguments of `kdr` that run the study in the foreground.
        storage_option: the storage as the user wrote it.

    Raises:
        KdrError: if the run would fail at once, for any reason that can be found without torch and
            Ray.
    """
    _check(study, storage)
    output = storage.output(study.study)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as file:
            file.write(f"$ {shlex.join(['kdr', *arguments])}\n".encode())
            file.flush()
            # a session of its own: neither Ctrl-C in this terminal nor closing it reaches the run
            process = subprocess.Popen(
                [*_launcher(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise StorageError(
            f"--detach: cannot write {output} ({error.strerror or error}). Name another folder "
            "with --storage, or with KDR_LOCAL if the storage is an object store"
        ) from error
    place = f" --storage {shlex.quote(storage_option)}" if storage_option != DEFAULT_STORAGE else ""
    return DetachedRun(
        study=study.study,
        pid=process.pid,
        output=str(output),
        log=str(storage.log),
        watch=f"kdr status {study.study} --watch{place}",
        stop=f"kill {process.pid}",
    )


def _check(study: "Study", storage: "Storage") -> None:
    """Raises an error if the run would fail at once."""
    from kdr.cli.plan_facts import missing_paths
    from kdr.plan.expand import expand_study
    from kdr.run.driver.sole_driver import driver_of
    from kdr.run.loggers import check_loggers

    expand_study(study)
    check_loggers(study.loggers)
    if missing := missing_paths(study):
        raise DataError(
            "\n".join(f"{setting}: must exist, got {path}" for setting, path in missing)
        )
    storage.check_writable()
    driver = driver_of(storage, study.study)
    if driver is not None and driver.is_here:
        raise BusyError(
            f"study {study.study} is already running ({driver}, since {driver.since}). See "
            f"`kdr status {study.study}`"
        )


def _launcher() -> list[str]:
    """Returns the start of a command line that runs kdr: a clone may not be installed."""
    launcher = Path(kdr.__file__).parents[1] / "orchestrate.py"
    return [sys.executable, *([str(launcher)] if launcher.is_file() else ["-m", "kdr"])]
