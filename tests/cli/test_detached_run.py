"""`run --detach`: a background run in its own session, refused if it would end at once."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdr.cli import run, status
from kdr.cli.detached_run import DetachedRun, start_detached
from kdr.config.study import read_study
from kdr.errors import BusyError, ConfigError, DataError, PackageError, StorageError
from kdr.results.reader import read_log
from kdr.run.driver.sole_driver import sole_driver
from kdr.storage.layout import Storage
from tests.cli.conftest import Invoke, Write

TINY: dict[str, Any] = {
    "study": "tiny",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    },
    "ablation": {"factors": {"lr": {"low": {"training.lr": 1e-4}}}, "seeds": [0]},
    "resources": {"max_concurrent": 1},
}
CHILD = """
import json, os, sys
print(json.dumps({
    "arguments": sys.argv[1:], "leads_session": os.getsid(0) == os.getpid(),
    "input": sys.stdin.read(), "folder": os.getcwd(),
}))
print("on standard error", file=sys.stderr)
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the tiny study, with some of its parts replaced."""

    def to_disk(**parts: Any) -> Path:
        path = tmp_path / "tiny.yaml"
        path.write_text(json.dumps({**TINY, **parts}))  # JSON is YAML
        return path

    return to_disk


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Replaces kdr in the background by a process that says how it was started."""
    started: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("kdr.cli.detached_run.subprocess.Popen", Kept)
    launcher = [sys.executable, "-c", CHILD]
    monkeypatch.setattr("kdr.cli.detached_run._launcher", lambda: launcher)
    yield started
    for process in started:
        process.wait(30)


def test_it_runs_in_a_session_of_its_own_and_prints_to_a_file(
    invoke: Invoke, write: Write, tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    storage = tmp_path / "my runs"
    options = ["--set", "training.epochs=3", "--set", "seed=2", "--rerun", "--no-preflight"]
    options += ["--address", "auto", "--send-code"]
    study = write()
    result = invoke(run.command, study, "--storage", storage, *options, "--detach")
    [child] = children
    assert child.wait(30) == 0
    output = storage / "output" / "tiny.log"
    head, said, error = output.read_text().splitlines()
    assert head.startswith(f"$ kdr run {study} '--storage={storage}' --set=training.epochs=3")
    assert json.loads(said) == {
        "arguments": [
            "run",
            str(study),
            f"--storage={storage}",
            "--set=training.epochs=3",
            "--set=seed=2",
            "--address=auto",
            "--send-code",
            "--rerun",
            "--no-preflight",
        ],
        "leads_session": True,
        "input": "",
        "folder": os.getcwd(),  # noqa: PTH109
    }
    assert error == "on standard error"
    assert result.stdout.splitlines() == [
        f"Study tiny is running in the background (pid {child.pid})",
        f"Output: {output}",
        "",
        f"kdr status tiny --watch --storage '{storage}'    # watch it",
        f"kill {child.pid}    # end it; the same command resumes it",
    ]


def test_with_json_it_prints_one_object(
    invoke: Invoke,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    children: list[subprocess.Popen[bytes]],
) -> None:
    monkeypatch.chdir(tmp_path)
    found = json.loads(invoke(run.command, write(), "--detach", "--json").stdout)
    assert found == {
        "study": "tiny",
        "pid": children[0].pid,
        "output": str(tmp_path / "runs" / "output" / "tiny.log"),
        "log": str(tmp_path / "runs" / "log" / "v1"),
        "watch": "kdr status tiny --watch",
        "stop": f"kill {children[0].pid}",
    }


def test_a_second_run_appends_to_the_file(
    write: Write, tmp_path: Path, children: list[subprocess.Popen[bytes]]
) -> None:
    study, storage = read_study(write()), Storage.at(tmp_path / "runs")
    runs: list[DetachedRun] = []
    for number in (1, 2):
        runs.append(start_detached(study, storage, [str(number)], storage_option="runs"))
        children[-1].wait(30)
    text = Path(runs[0].output).read_text()
    assert text.index("$ kdr 1\n") < text.index("$ kdr 2\n")
    assert runs[0].pid != runs[1].pid


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def popen(*_: object, **__: object) -> None:
        pytest.fail("a process was started")

    monkeypatch.setattr("kdr.cli.detached_run.subprocess.Popen", popen)


@pytest.mark.usefixtures("nothing_starts")
def test_a_running_study_is_refused(invoke: Invoke, write: Write, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path / "runs")
    message = rf"study tiny is already running \(process {os.getpid()} on .*, since .* UTC\)\. "
    with (
        sole_driver(storage, "tiny", on_waiting=print),
        pytest.raises(BusyError, match=message + "See `kdr status tiny`"),
    ):
        invoke(run.command, write(), "--storage", storage.root, "--detach")


@pytest.mark.usefixtures("nothing_starts")
@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"trial": {}}, ConfigError, r"trial\."),
        (
            {"ablation": {"factors": {"lr": {"low": {"training.lr": -1}}}, "seeds": [0]}},
            ConfigError,
            r"training\.lr",
        ),
        (
            {
                "trial": {
                    **TINY["trial"],
                    "data": {
                        "dataset": "coco",
                        **{f"{part}_images": "no/images" for part in ("train", "val")},
                        **{f"{part}_annotations": "no/boxes.json" for part in ("train", "val")},
                    },
                }
            },
            DataError,
            r"data\.train_images: must exist, got .*/no/images\n(.*\n)+data\.val_annotations: ",
        ),
    ],
)
def test_a_run_that_would_fail_at_once_is_refused(
    invoke: Invoke,
    write: Write,
    tmp_path: Path,
    parts: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        invoke(run.command, write(**parts), "--storage", tmp_path / "runs", "--detach")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("nothing_starts")
def test_a_missing_logger_is_refused(
    invoke: Invoke, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    study = write(loggers=["mlflow"])
    with pytest.raises(PackageError, match="mlflow"):
        invoke(run.command, study, "--storage", tmp_path / "runs", "--detach")


@pytest.mark.usefixtures("nothing_starts")
def test_an_unwritable_storage_is_refused(invoke: Invoke, write: Write, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match="--storage: "):
        invoke(run.command, write(), "--storage", tmp_path / "runs", "--detach")


@pytest.mark.usefixtures("nothing_starts")
def test_an_unwritable_output_file_is_an_error(
    invoke: Invoke, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "output").write_text("a file")
    with pytest.raises(StorageError, match=r"--detach: cannot write .*/output/tiny\.log"):
        invoke(run.command, write(), "--storage", tmp_path / "runs", "--detach")


def test_status_shows_a_starting_study(invoke: Invoke, tmp_path: Path) -> None:
    storage = Storage.at(tmp_path)
    arguments = ("tiny", "--storage", tmp_path)
    with sole_driver(storage, "tiny", on_waiting=print):
        assert invoke(status.command, *arguments).stdout.startswith("tiny: 0 trials (none ")
    with pytest.raises(ConfigError, match="study tiny is not in the log"):
        invoke(status.command, *arguments)
    storage.output("tiny").parent.mkdir()
    storage.output("tiny").touch()
    found = json.loads(invoke(status.command, *arguments, "--json").stdout)
    assert (found["study"], found["trials"], found["is_over"]) == ("tiny", [], False)
    os.utime(storage.output("tiny"), (0, 0))
    with pytest.raises(ConfigError, match="study tiny is not in the log"):
        invoke(status.command, *arguments)


@pytest.mark.ray
def test_a_detached_run_reaches_its_end(
    orchestrate: Callable[..., subprocess.CompletedProcess[str]], write: Write, tmp_path: Path
) -> None:
    storage = ("--storage", tmp_path / "runs")
    started = json.loads(orchestrate("run", write(), *storage, "--detach", "--json").stdout)
    found: dict[str, Any] = {"is_over": False}
    give_up = time.monotonic() + 120
    while not found["is_over"]:
        assert time.monotonic() < give_up, Path(started["output"]).read_text()
        time.sleep(1)
        found = json.loads(orchestrate("status", "tiny", *storage, "--json").stdout)
    assert found["counts"] == {"completed": 2}
    while Path(f"/proc/{started['pid']}").exists():
        assert time.monotonic() < give_up
        time.sleep(0.5)
    text = Path(started["output"]).read_text()
    assert "\n2 trials run in " in text
    assert "Traceback" not in text
    assert len(read_log(Storage.at(tmp_path / "runs")).keys_of("tiny")) == 2
