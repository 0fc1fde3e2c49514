"""The command line as a whole: version, help, exit codes, and errors without tracebacks."""

import json
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import pytest
from typer.testing import CliRunner

import kdr
from kdr.cli.app import COMMANDS, LOG_COMMANDS, PANELS, app, main
from tests.cli.conftest import Orchestrate

ROOT = Path(kdr.__file__).parents[1]
NO_PAIR = "operator torchvision::nms does not exist"


def test_version_prints_the_version(orchestrate: Orchestrate) -> None:
    result = orchestrate("--version")
    assert (result.returncode, result.stdout) == (0, f"kdr {kdr.__version__}\n")


SCRIPT = """
import sys, tomllib
from pathlib import Path
from pkgutil import resolve_name
scripts = tomllib.loads(Path("pyproject.toml").read_text())["project"]["scripts"]
sys.argv = ["/anywhere/bin/kdr", *sys.argv[1:]]
resolve_name(scripts["kdr"])()
"""
"""The installed script `kdr`, as pip writes it."""


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (["orchestrate.py"], "orchestrate.py"),
        (["-m", "kdr"], "python -m kdr"),
        (["-c", SCRIPT], "kdr"),
    ],
)
def test_usage_names_the_command_as_it_was_called(start: list[str], name: str) -> None:
    for arguments in (["status", "--help"], ["status", "--no-such-option"]):
        result = subprocess.run(
            [sys.executable, *start, *arguments], capture_output=True, text=True, cwd=ROOT
        )
        assert f"Usage: {name} status" in result.stdout + result.stderr


def test_help_groups_the_commands_in_the_order_of_use() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    lines = [line.strip("│╭─╮ ").split() for line in text.splitlines() if line.strip("│╭─╮╰╯ ")]
    heads = [words[0] for words in lines if words]
    wanted = [head for panel, commands in PANELS.items() for head in (panel, *commands)]
    found = [head for head in heads if head in (*wanted, "Log", "log")]
    assert found == [*wanted, "Log", "log"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_of_the_command(name: str) -> None:
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"kdr\s+{name} \S", result.stdout)


@pytest.mark.parametrize(
    "path", [*([name] for name in COMMANDS), *(["log", name] for name in LOG_COMMANDS)]
)
def test_help_fills_its_lines(path: list[str]) -> None:
    text = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "80"}).stdout
    lines = [line.strip() for line in text.partition("╭")[0].splitlines()]
    for line, following in pairwise(lines):
        assert not (line and following) or len(f"{line} {following.split()[0]}") > 78


@pytest.mark.parametrize(
    "name", sorted(COMMANDS.keys() - {"init", "schema", "doctor"})
)  # which need none
def test_a_command_without_arguments_shows_its_help(name: str) -> None:
    assert (
        CliRunner().invoke(app, [name]).output.strip()
        == CliRunner().invoke(app, [name, "--help"]).output.strip()
    )


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from kdr.cli.app import COMMANDS, app\n"
        "for name in COMMANDS:\n    "
        "CliRunner().invoke(app, [name, '--help'])\n"
        "print(CliRunner().invoke(app, ['--help']).stdout)\n"
        "heavy = ('torch', 'ray', 'optuna', 'pyarrow', 'duckdb', 'numpy', 'PIL')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert lines[-1] == "[]"
    for name in COMMANDS:
        assert any(re.match(rf"\W*{name}\b", line) for line in lines), name


def test_a_user_error_is_one_line_and_exit_code_2(orchestrate: Orchestrate, tmp_path: Path) -> None:
    result = orchestrate("status", "nothing", "--storage", tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("study nothing is not in the log of ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [("plan", "--no-such-option"), ("nothing",), ("evaluate", "KEY", "--num-shown", "0")],
)
def test_a_wrong_option_is_exit_code_2(
    orchestrate: Orchestrate, arguments: tuple[str, ...]
) -> None:
    result = orchestrate(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["RuntimeError", "ImportError"])
def test_a_torch_that_does_not_match_torchvision_is_explained(
    orchestrate: Orchestrate, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "torch.py").write_text(f"raise {kind}({NO_PAIR!r})\n")
    result = orchestrate(
        "evaluate", "KEY", "--storage", tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "torch, torchvision: must be a matching pair from one package index, got "
    )
    assert "pip install torch torchvision" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["RuntimeError", "ImportError"])
def test_bugs_keep_their_traceback(orchestrate: Orchestrate, tmp_path: Path, kind: str) -> None:
    (tmp_path / "torch.py").write_text(f"raise {kind}('something else')\n")
    result = orchestrate(
        "evaluate", "KEY", "--storage", tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    assert result.returncode == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith(f"{kind}: something else\n")


def test_ctrl_c_before_anything_runs_is_exit_code_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_place: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("kdr.storage.layout.Storage.at", interrupted)
    monkeypatch.setattr("sys.argv", ["orchestrate.py", "status", "any"])
    with pytest.raises(SystemExit, match="130"):
        main()
    assert "the same command resumes" in capsys.readouterr().err


ENDS_SLOWLY = """
import atexit, sys, time
from kdr.cli.app import main

def clean_up():
    print("cleaning up", flush=True)
    time.sleep(0.5)

atexit.register(clean_up)
sys.argv = ["orchestrate.py", "schema"]
main()
"""


def test_ctrl_c_while_libraries_clean_up_prints_nothing() -> None:
    command, pipe = [sys.executable, "-c", ENDS_SLOWLY], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "cleaning up\n" in iter(process.stdout.readline, "")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


def test_sigterm_before_anything_runs_is_exit_code_143(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kdr.cli.app.app", lambda **_: signal.raise_signal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        main()
    assert "the same command resumes" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_json_goes_to_standard_output_alone(orchestrate: Orchestrate, tmp_path: Path) -> None:
    study = Path(kdr.__file__).parents[1] / "search_spaces" / "quickstart.yaml"
    result = orchestrate("plan", study, "--storage", tmp_path, "--json")
    assert json.loads(result.stdout)["study"] == "quickstart"
    assert result.stderr == ""


@pytest.mark.parametrize("name", LOG_COMMANDS)
def test_help_of_a_log_command_shows_an_example(name: str) -> None:
    result = CliRunner().invoke(app, ["log", name, "--help"])
    assert result.exit_code == 0
    assert re.search(rf"kdr\s+log\s+{name}", result.stdout)
