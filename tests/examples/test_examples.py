"""Every example runs, one after the other on one storage, as a reader would run them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kdr

EXAMPLES = Path(kdr.__file__).parents[1] / "examples"
STUDY = {
    "study": "quickstart",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "teacher": {
            "backbone": "resnet18",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {"epochs": 2, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
    },
    "search": {
        "metric": "AP",
        "trials": 2,
        "parameters": {"distill.kdr.weight": {"float": [0.1, 10], "log": True}},
    },
    "keep_weights": "all",
}


def run(name: str, *arguments: object) -> str:
    """Runs an example in a process of its own and returns what it prints."""
    command = [sys.executable, EXAMPLES / name, *arguments]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_tested() -> None:
    tested = {"run_a_study.py", "query_the_log.py", "detect.py", "read_a_log.ipynb"}
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == tested


@pytest.mark.ray
def test_the_examples_run_a_study_query_its_log_and_use_its_student(tmp_path: Path) -> None:
    study, storage = tmp_path / "study.yaml", tmp_path / "runs"
    study.write_text(json.dumps(STUDY))
    printed = run("run_a_study.py", study, "--storage", storage, "--set", "training.epochs=1")
    assert "0 of 2 trials are done" in printed
    assert "2 trials run, 0 failed" in printed
    table = tmp_path / "table.tex"
    printed = run("query_the_log.py", "quickstart", "--storage", storage, "--output", table)
    assert "completed: 2 trials" in printed
    assert r"\begin{tabular}" in table.read_text()
    key = next(
        iter(
            kdr.open_log(storage)
            .query("SELECT key FROM trials WHERE role = 'student'")["key"]
            .to_pylist()
        )
    )
    [image, *_] = sorted(storage.glob("**/*.png")) or sorted(storage.glob("**/*.jpg"))
    found = tmp_path / "found"
    printed = run("detect.py", storage / "trials" / key, image, "--output", found, "--min-score", 0)
    assert printed.startswith(f"{image.name}: ")
    assert [path.stem for path in found.iterdir()] == [image.stem]
    _execute_notebook(EXAMPLES / "read_a_log.ipynb", storage, tmp_path)


def _execute_notebook(path: Path, storage: Path, folder: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    env = {**os.environ, "KDR_STORAGE": str(storage), "PYTHONPATH": str(EXAMPLES.parent)}
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(folder)}})
    client.execute(env=env)
    assert _num_pictures(notebook) == 2


def test_the_notebook_is_stored_executed_with_its_two_figures() -> None:
    notebook = json.loads((EXAMPLES / "read_a_log.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert _num_pictures(notebook) == 2


def _num_pictures(notebook: Any) -> int:
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)
