"""Errors of commands with `--json`: a JSON object on the last line of standard output."""

import sys
from collections.abc import Sequence


def wants_json(arguments: Sequence[str]) -> bool:
    """Returns whether a command line asks for JSON; reads its words, because errors in options are
    raised before any option has a value.
    """
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in options


def print_error(kind: str, message: str, *, exit_code: int) -> None:
    """Prints {"error": {"kind", "message", "problems", "exit_code"}} to standard output.

    Args:
        kind: name of the error's class; `UsageError` for a wrong option, `Interrupted`,
            `Terminated`, or `InternalError` for a bug.
        message: the text that people read on standard error.
        exit_code: exit code of the command.
    """
    from kdr.report.formatting import json_text

    error = {
        "kind": kind,
        "message": message,
        "problems": message.splitlines(),
        "exit_code": exit_code,
    }
    print(json_text({"error": error}))
    sys.stdout.flush()
