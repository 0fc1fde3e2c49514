"""The wheel holds what kdr needs: installed without its source, it works in an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import kdr

ROOT = Path(kdr.__file__).parents[1]
TINY = [
    "training.epochs=1",
    "training.batch_size=8",
    "data.image_size_px=64",
    "data.num_train=24",
    "data.num_val=8",
    "data.search_split=8",
    "teacher.training.epochs=1",
    "search.trials=1",
    "search.stop_early=none",
]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy without anything that is not in the repository."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "kdr", source / "kdr", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", folder, source]
    subprocess.run(list(map(str, command)), check=True)
    [built] = folder.glob("kdr-*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, and the packages of this one but for kdr's source."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "-q", "--no-deps"]
    subprocess.run([*install, str(wheel)], check=True)
    [packages] = (folder / "lib").glob("python*/site-packages")
    # a path in a .pth file is searched, but its own .pth files, such as kdr's editable one, are not
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run(environment: Path, folder: Path, *arguments: str) -> str:
    """Runs a program of the environment in a folder and returns what it prints."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(environment / "bin" / arguments[0]), *arguments[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_the_files_that_are_not_code(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
    source = {str(path.relative_to(ROOT)) for path in (ROOT / "kdr").rglob("*") if path.is_file()}
    assert {name for name in source if "__pycache__" not in name} <= names


def test_init_plan_and_schema_work_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    code = "import kdr; print(kdr.__file__)"
    assert run(environment, tmp_path, "python", "-c", code).startswith(str(environment))
    run(environment, tmp_path, "kdr", "init", "quickstart")
    assert "quickstart" in run(environment, tmp_path, "kdr", "plan", "quickstart.yaml")
    assert run(environment, tmp_path, "kdr", "schema").startswith("{")


@pytest.mark.ray
def test_run_and_report_work_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    run(environment, tmp_path, "kdr", "init", "quickstart")
    changes = [part for change in TINY for part in ("--set", change)]
    run(environment, tmp_path, "kdr", "run", "quickstart.yaml", "--no-preflight", *changes)
    run(environment, tmp_path, "kdr", "report", "quickstart", "--output", "page.html")
    assert "<html" in (tmp_path / "page.html").read_text()
