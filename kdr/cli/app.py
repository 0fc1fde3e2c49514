"""The command line: registers commands, prints errors that users can fix, sets exit codes.

Exit codes: 0 success, 1 some trials failed, 2 invalid input, 130 interrupted by Ctrl-C, 143
terminated by SIGTERM or SIGHUP.
"""

import atexit
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

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
from kdr.cli.json_errors import print_error, wants_json
from kdr.errors import KdrError, TrialFailure
from kdr.run.driver.interruption import GracePeriod, RayTerminated, Terminated, end_by_exception

_NOT_A_PAIR = """\
torch, torchvision: must be a matching pair from one package index, got builds that do not match. A
CPU-only torch does not work with the torchvision of PyPI. Install both at once:
pip install torch torchvision"""


_NO_PAIR = "operator torchvision::nms does not exist"
_RESUMES = "Finished work is in the log; the same command resumes."


class _Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        # typer would exit with code 130 and print nothing
        except KeyboardInterrupt as error:
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
        "Searches and ablations for distilling object detectors. Trials run on Ray and are logged "
        "to Parquet.\n\n"
        "To get started: [bold]kdr init quickstart[/], then [bold]kdr run quickstart.yaml[/]"
    ),
)
PANELS = {
    "Start": {"init": init, "doctor": doctor, "plan": plan, "schema": schema},
    "Run": {"run": run, "status": status, "train": train_one},
    "Read": {
        "table": table,
        "report": report,
        "best": best,
        "ablate-from": ablate_from,
        "evaluate": evaluate,
        "verify": verify,
        "query": query,
    },
}
"""Commands by panel of `kdr --help`, in the order of use."""
COMMANDS = {name: module for commands in PANELS.values() for name, module in commands.items()}
NEED_NO_ARGUMENT = ("init", "doctor", "schema")


def _help(command: Callable[..., None]) -> str:
    """Returns the help of a command: its docstring, with each paragraph on one line.

    Typer (0.29) wraps paragraphs to the terminal, but also keeps their own line breaks.
    """
    paragraphs = (inspect.getdoc(command) or "").split("\n\n")
    return "\n\n".join(paragraph.replace("\n", " ") for paragraph in paragraphs)


for panel, commands in PANELS.items():
    for name, module in commands.items():
        app.command(
            name,
            help=_help(module.command),
            no_args_is_help=name not in NEED_NO_ARGUMENT,
            rich_help_panel=panel,
        )(module.command)

log_app = typer.Typer(
    no_args_is_help=True,
    help="Check or compact the trial log; exclude or cancel a trial.",
)
LOG_COMMANDS = {
    "check": log_check,
    "compact": log_compact,
    "exclude": log_exclude,
    "cancel": log_cancel,
}
for name, module in LOG_COMMANDS.items():
    # without an argument, `check` and `compact` take the whole log
    log_app.command(
        name, help=_help(module.command), no_args_is_help=name in ("exclude", "cancel")
    )(module.command)
app.add_typer(log_app, name="log", rich_help_panel="Log")


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
    """Runs the command line; errors that a user can fix are printed without a traceback.

    With `--json` every failure also prints a JSON object, as the last line of standard output.
    """
    try:
        with GracePeriod(0, end_by_exception):
            app(standalone_mode=True)
    except SystemExit as ending:
        # typer has printed the error about an invalid option, and exits while handling it
        if message := getattr(ending.__context__, "format_message", None):
            _note("UsageError", message(), code=int(ending.code or 0))
        raise
    except TrialFailure as failure:
        _fail(type(failure).__name__, str(failure), code=1)
    except KdrError as error:
        _fail(type(error).__name__, str(error), code=2)
    except (_Interrupted, KeyboardInterrupt):
        _fail("Interrupted", f"Interrupted. {_RESUMES}", code=130)
    except RayTerminated:
        _say("Terminated", f"Terminated, and Ray with it. {_RESUMES}", code=143)
        os._exit(143)  # at exit, Ray's library would wait a minute for Ray's processes
    except Terminated:
        _fail("Terminated", f"Terminated. {_RESUMES}", code=143)
    except Exception as error:
        if isinstance(error, RuntimeError | ImportError) and _NO_PAIR in str(error):
            _fail("PackageError", _NOT_A_PAIR, code=2)
        _note("InternalError", f"{type(error).__name__}: {error}", code=1)
        raise
    finally:
        # another Ctrl-C must not print the tracebacks of libraries that it interrupts in their
        # clean-up
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _fail(kind: str, message: str, *, code: int) -> NoReturn:
    _say(kind, message, code=code)
    sys.exit(code)


def _say(kind: str, message: str, *, code: int) -> None:
    """Prints an error for people, and for programs that asked for JSON."""
    for line in message.splitlines():
        print(line, file=sys.stderr)
    _note(kind, message, code=code)


def _note(kind: str, message: str, *, code: int) -> None:
    """Prints an error for programs that asked for JSON."""
    if wants_json(sys.argv[1:]):
        print_error(kind, message, exit_code=code)
