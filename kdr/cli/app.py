"""The command line: registers the commands, prints errors that users can act on, sets exit codes.

Exit codes: 0 done, 1 some trials failed, 2 wrong input, 130 interrupted by Ctrl-C, 143 by SIGTERM
or SIGHUP.
"""

import atexit
import os
import signal
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import kdr
from kdr.cli import (
    ablate_from,
    best,
    doctor,
    evaluate,
    init,
    log_cancel,
    log_check,
    log_compact,
    log_exclude,
    plan,
    query,
    report,
    run,
    schema,
    status,
    table,
    train_one,
    verify,
)
from kdr.errors import KdrError, TrialFailure
from kdr.run.driver.interruption import GracePeriod, RayTerminated, Terminated, end_by_exception

_NOT_A_PAIR = """\
torch, torchvision: must be a matching pair from one package index, got two builds that do not fit
together. A CPU-only torch does not work with the registry's torchvision. Install both at once:
pip install torch torchvision"""


class _Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """Ctrl-C."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:  # typer would end the program without a word
            raise _Interrupted from error


app = typer.Typer(
    cls=_Commands,
    name="kdr",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Distils object detectors: searches and ablations on Ray, every trial in a Parquet "
        "log.\n\nA first look: [bold]kdr init quickstart[/], then [bold]kdr run quickstart.yaml[/]"
    ),
)
COMMANDS = {
    "init": init,
    "plan": plan,
    "run": run,
    "status": status,
    "table": table,
    "verify": verify,
    "report": report,
    "query": query,
    "best": best,
    "ablate-from": ablate_from,
    "train": train_one,
    "evaluate": evaluate,
    "schema": schema,
    "doctor": doctor,
}
for name, module in COMMANDS.items():
    app.command(name, no_args_is_help=name not in ("init", "schema", "doctor"))(module.command)

log_app = typer.Typer(
    no_args_is_help=True,
    help="Look after the trial log: check, compact, exclude a trial, cancel a trial.",
)
LOG_COMMANDS = {
    "check": log_check,
    "compact": log_compact,
    "exclude": log_exclude,
    "cancel": log_cancel,
}
for name, module in LOG_COMMANDS.items():
    # `check` and `compact` mean the whole log when nothing is named
    log_app.command(name, no_args_is_help=name in ("exclude", "cancel"))(module.command)
app.add_typer(log_app, name="log")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"kdr {kdr.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line; errors that a user can fix are printed without a traceback."""
    try:
        with GracePeriod(0, end_by_exception):
            app(standalone_mode=True)
    except TrialFailure as failure:
        _fail(str(failure), code=1)
    except KdrError as error:
        _fail(str(error), code=2)
    except (RuntimeError, ImportError) as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        _fail(_NOT_A_PAIR, code=2)
    except (_Interrupted, KeyboardInterrupt):
        _fail("Interrupted. What was finished is in the log; the same command continues.", code=130)
    except RayTerminated:
        print(
            "Terminated, and Ray with it. What was finished is in the log; the same command "
            "continues.",
            file=sys.stderr,
        )
        sys.stdout.flush()
        os._exit(143)  # at exit, Ray's library would wait a minute for Ray's processes
    except Terminated:
        _fail("Terminated. What was finished is in the log; the same command continues.", code=143)
    finally:
        # all has been said: one more Ctrl-C must not print what it interrupts in libraries that
        # clean up
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _fail(message: str, *, code: int) -> None:
    for line in message.splitlines():
        print(line, file=sys.stderr)
    sys.exit(code)
