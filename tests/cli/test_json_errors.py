"""No failure of a command with `--json` bypasses the error object on its last line."""

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

import kdr.errors
from kdr.cli.app import COMMANDS, LOG_COMMANDS, main
from kdr.cli.json_errors import wants_json
from kdr.errors import KdrError, TrialFailure
from kdr.report.tables.formats import written
from kdr.report.tables.grid import Grid
from kdr.report.tables.requested_table import TableRequest
from kdr.run.driver.interruption import RayTerminated, Terminated

EVERY_COMMAND: dict[tuple[str, ...], ModuleType] = {
    **{(name,): module for name, module in COMMANDS.items()},
    **{("log", name): module for name, module in LOG_COMMANDS.items()},
}
JSON_COMMANDS = [
    words
    for words, module in EVERY_COMMAND.items()
    if "json_" in inspect.signature(module.command).parameters
]
STUDY = str(Path(kdr.__file__).parent / "starters" / "quickstart.yaml")
ARGUMENTS: dict[tuple[str, ...], list[str]] = {
    ("plan",): [STUDY],
    ("run",): [STUDY],
    ("status",): ["quickstart"],
    ("verify",): ["table.md"],
    ("best",): ["quickstart"],
    ("evaluate",): ["0123abcd"],
    ("doctor",): [STUDY],
    ("log", "check"): [],
}
"""Arguments with which each command reaches the storage."""
NEED_NONE = {("doctor",), ("log", "check")}
"""Commands whose arguments may be left out."""


def subclasses(error: type[KdrError]) -> Iterator[type[KdrError]]:
    for subclass in error.__subclasses__():
        yield subclass
        yield from subclasses(subclass)


def made(error: type[KdrError]) -> KdrError:
    arguments: dict[str, tuple[Any, ...]] = {
        "ClusterError": (["a node is missing"],),
        "PreflightError": (["losses: must be finite"],),
        "TrialFailure": ("non_finite_loss", "the loss is NaN"),
        "OutOfMemory": ("no room for 3 GiB", 16),
    }
    return error(*arguments.get(error.__name__, ("a: must be b\nc: must be d",)))


OF_USERS = [made(error) for error in dict.fromkeys(subclasses(KdrError))]
INTERRUPTIONS = {
    "Interrupted": (KeyboardInterrupt(), 130),
    "Terminated": (Terminated(), 143),
    "Terminated with Ray": (RayTerminated(), 143),
}
OF_OURS = [ValueError("a bug"), RuntimeError("a bug"), ImportError("no module"), KeyError("k")]
NO_PAIR = [kind("operator torchvision::nms does not exist") for kind in (RuntimeError, ImportError)]

Fail = Callable[..., tuple[dict[str, Any], str, int | str | None]]


@pytest.fixture
def fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Fail:
    """Runs a command whose storage raises an error; returns the object on the last line, what
    people read, and the exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os._exit", lambda code: (_ for _ in ()).throw(SystemExit(code)))
    source = TableRequest("quickstart", "ranking", ("AP",)).source()
    Path("table.md").write_text(written(Grid("", ("a",), ((1,),)), "md", source))

    def run(
        *words: str, error: BaseException | None = None
    ) -> tuple[dict[str, Any], str, int | str | None]:
        def at(*_: object, **__: object) -> NoReturn:
            assert error is not None
            raise error

        if error is not None:
            monkeypatch.setattr("kdr.storage.layout.Storage.at", at)
        monkeypatch.setattr("sys.argv", ["kdr", *words])
        code: int | str | None = 1  # Python's own, of an error that comes through
        try:
            main()
        except SystemExit as ending:
            code = ending.code
        except BaseException as raised:
            if raised is not error:
                raise
        printed = capsys.readouterr()
        last = json.loads(printed.out.splitlines()[-1])
        assert list(last) == ["error"]
        assert list(last["error"]) == ["kind", "message", "problems", "exit_code"]
        assert last["error"]["exit_code"] == code
        assert last["error"]["message"]
        assert last["error"]["problems"] == last["error"]["message"].splitlines()
        return last["error"], printed.err, code

    return run


def test_every_command_with_json_is_tested_here() -> None:
    assert ARGUMENTS.keys() == set(JSON_COMMANDS)


every_json_command = pytest.mark.parametrize("words", JSON_COMMANDS, ids=" ".join)


@every_json_command
@pytest.mark.parametrize("error", OF_USERS, ids=lambda error: type(error).__name__)
def test_a_user_error_is_an_object(fail: Fail, words: tuple[str, ...], error: KdrError) -> None:
    found, read_by_people, code = fail(*words, *ARGUMENTS[words], "--json", error=error)
    assert found["kind"] == type(error).__name__
    assert found["message"] == str(error)
    assert read_by_people.splitlines() == str(error).splitlines()
    assert code == (1 if isinstance(error, TrialFailure) else 2)


@every_json_command
@pytest.mark.parametrize("kind", INTERRUPTIONS)
def test_an_interruption_is_an_object(fail: Fail, words: tuple[str, ...], kind: str) -> None:
    error, expected = INTERRUPTIONS[kind]
    found, read_by_people, code = fail(*words, *ARGUMENTS[words], "--json", error=error)
    assert (found["kind"], code) == (kind.split()[0], expected)
    assert read_by_people.strip() == found["message"]


@every_json_command
@pytest.mark.parametrize("error", OF_OURS, ids=lambda error: type(error).__name__)
def test_a_bug_is_an_object_and_keeps_its_traceback(
    fail: Fail, words: tuple[str, ...], error: Exception
) -> None:
    found, _, code = fail(*words, *ARGUMENTS[words], "--json", error=error)
    assert (found["kind"], code) == ("InternalError", 1)
    assert found["message"] == f"{type(error).__name__}: {error}"


@every_json_command
@pytest.mark.parametrize("error", NO_PAIR, ids=lambda error: type(error).__name__)
def test_mismatched_packages_are_an_object(
    fail: Fail, words: tuple[str, ...], error: Exception
) -> None:
    found, read_by_people, code = fail(*words, *ARGUMENTS[words], "--json", error=error)
    assert (found["kind"], code) == ("PackageError", 2)
    assert "pip install torch torchvision" in read_by_people


@every_json_command
def test_a_wrong_option_is_an_object(fail: Fail, words: tuple[str, ...]) -> None:
    found, read_by_people, code = fail(*words, *ARGUMENTS[words], "--json", "--no-such-option")
    assert (found["kind"], code) == ("UsageError", 2)
    assert "No such option: --no-such-option" in found["message"]
    assert f"kdr {' '.join(words)} [OPTIONS]" in read_by_people


@pytest.mark.parametrize("words", [words for words in JSON_COMMANDS if words not in NEED_NONE])
def test_a_missing_argument_is_an_object(fail: Fail, words: tuple[str, ...]) -> None:
    found, _, code = fail(*words, "--json")
    assert (found["kind"], code) == ("UsageError", 2)
    assert found["message"].startswith("Missing argument")


def test_an_unknown_command_is_an_object(fail: Fail) -> None:
    found, _, code = fail("nothing", "--json")
    assert (found["kind"], code) == ("UsageError", 2)


def test_a_bug_prints_its_traceback_for_people(
    orchestrate: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('a bug')\n")
    arguments = ("evaluate", "KEY", "--storage", tmp_path, "--json")
    result = orchestrate(*arguments, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 1
    [line] = result.stdout.splitlines()
    assert json.loads(line)["error"]["message"] == "RuntimeError: a bug"
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("RuntimeError: a bug\n")


def test_without_json_nothing_is_printed_for_programs(
    orchestrate: Callable[..., Any], tmp_path: Path
) -> None:
    result = orchestrate("status", "nothing", "--storage", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("status quickstart --json", True),
        ("status quickstart", False),
        ("query --format json", False),
        ("status -- --json", False),
        ("", False),
    ],
)
def test_json_is_requested_by_its_option(line: str, expected: bool) -> None:
    assert wants_json(line.split()) is expected
