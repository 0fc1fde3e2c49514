"""docs/commands.md has every command with its options, and no others."""

import re
from pathlib import Path

import pytest
import typer.main

import kdr
from kdr.cli.app import COMMANDS, LOG_COMMANDS, app

PAGE = (Path(kdr.__file__).parents[1] / "docs" / "commands.md").read_text()
NAMES = [*COMMANDS, *(f"log {name}" for name in LOG_COMMANDS)]


def section(name: str) -> str:
    return re.split(r"\n#{2,4} ", PAGE.partition(f"### kdr {name}\n")[2])[0]


def options_of(name: str) -> set[str]:
    """The long options of a command; of a pair such as --preflight/--no-preflight the second."""
    command = typer.main.get_command(app)
    for word in name.split():
        command = command.commands[word]  # type: ignore[attr-defined]  # a group
    options = [
        (param.secondary_opts or param.opts)[0]
        for param in command.params
        if param.param_type_name == "option"
    ]
    return set(options)


@pytest.mark.parametrize("name", NAMES)
def test_a_command_has_a_section_with_an_example_and_its_options(name: str) -> None:
    text = section(name)
    assert re.match(rf"```bash\nkdr {name}\b.*\n```\n", text)
    documented = set(re.findall(r"`(--[a-z-]+)", text))
    assert documented == options_of(name) - {"--help"}


def test_the_page_has_no_other_commands() -> None:
    assert sorted(re.findall(r"^### kdr (.+)$", PAGE, re.MULTILINE)) == sorted(NAMES)
