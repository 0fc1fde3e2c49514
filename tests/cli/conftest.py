"""Commands run as on the command line, in this process."""

from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Runs one command's function with command-line arguments; its errors come through as they are."""

    def run(command: Callable[..., Any], *arguments: object) -> Result:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)

    return run
