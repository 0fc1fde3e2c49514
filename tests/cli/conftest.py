"""Fixtures that run commands as on the command line, in this process or in a new one."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

import kdr
from kdr.storage.layout import Storage

ROOT = Path(kdr.__file__).parents[1]
Invoke = Callable[..., Result]
"""Runs a command's function with arguments."""
Ask = Callable[..., Result]
"""Runs the command of a test's module with arguments, on the storage of the test."""
Orchestrate = Callable[..., subprocess.CompletedProcess[str]]
"""Runs `orchestrate.py` with arguments."""
Write = Callable[..., Path]
"""Writes a study file with some parts replaced; returns its path."""


def text_of(console: Console) -> str:
    """Returns everything printed to a console that writes to memory."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="session")
def invoke() -> Invoke:
    """Runs a command's function with command-line arguments; its errors are raised."""

    def run(command: Callable[..., Any], *arguments: object) -> Result:
        app = typer.Typer()
        app.command()(command)
        return CliRunner().invoke(
            app, [str(argument) for argument in arguments], catch_exceptions=False
        )

    return run


@pytest.fixture(scope="session")
def orchestrate() -> Orchestrate:
    """Runs `orchestrate.py` in a new process."""

    def run(
        *arguments: object, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "orchestrate.py", *arguments]
        return subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            env={**os.environ, **(env or {})},
        )

    return run


@dataclass(frozen=True)
class Trained:
    """A tiny study of one trial, trained by `train`, with its output and weights."""

    study: Path
    storage: Storage
    result: Result
    key: str

    @property
    def weights(self) -> Path:
        return Path(str(self.storage.trial(self.key) / "student.pt"))


@pytest.fixture(scope="session")
def trained(invoke: Invoke, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    import torch

    from kdr.cli import train_one
    from kdr.results.reader import read_log

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    training = {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 1e-4}
    mobilenet = {"backbone": "mobilenet_v3_small", "fpn_channels": 32, "anchor_scale": 2}
    _save_eager_detector(folder / "eager.pt", mobilenet)
    trial = {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "teacher": {**mobilenet, "training": {**training, "epochs": 1}},
        "student": {**mobilenet, "weights": "eager.pt"},
        "distill": {"kdr": {}},
        "training": training,
    }
    study, storage = folder / "tiny.yaml", Storage.at(folder / "runs")
    study.write_text(json.dumps({"study": "tiny", "trial": trial}))  # JSON is YAML
    result = invoke(train_one.command, study, "--storage", storage.root)
    [key] = read_log(storage).keys_of("tiny")[:1]
    return Trained(study, storage, result, key)


def _save_eager_detector(path: Path, settings: dict[str, Any]) -> None:
    """Saves untrained weights that predict something everywhere; training would take minutes."""
    import torch

    from kdr.config.data import SHAPE_CLASSES
    from kdr.config.detector import DetectorConfig
    from kdr.detectors.build import build_detector
    from kdr.detectors.checkpoint_files import save_student
    from kdr.storage.local_path import LocalPath

    detector = build_detector(DetectorConfig(**settings), SHAPE_CLASSES[:6], seed=0)
    with torch.no_grad():
        detector.model.get_parameter("head.classification_head.cls_logits.bias").add_(4)
    save_student(LocalPath(path), detector, extra={})
