"""A study whose disk becomes full or read-only: it ends with the reason, and the same command
resumes once that is fixed."""

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdr.results.check import check_log as findings
from kdr.results.reader import read_log
from kdr.storage.layout import Storage
from tests.faults.invariants import Results, check_log, results_of
from tests.faults.processes import orchestrate
from tests.small_disk import empty, fill, small_disk

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SEEDS = 3
MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
STUDY: dict[str, Any] = {
    "study": "full",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 32, "num_val": 8},
        "student": MOBILENET,
        "training": {
            "epochs": 4,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "ablation": {
        "design": "arms",
        "arms": {"slow": {"training.lr": 1e-4}},
        "seeds": {"count": SEEDS},
    },
    "resources": {"max_concurrent": 1},
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "200m") as folder:
        yield folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The study's results on a disk with enough space."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study, storage = folder / "study.yaml", Storage.at(folder / "runs")
    study.write_text(json.dumps(STUDY))
    subprocess.run(command(study, storage), capture_output=True, check=True)
    results = results_of(storage, "full")
    assert [result[0] for result in results.values()] == ["completed"] * 2 * SEEDS
    return results


def command(study: Path, storage: Storage) -> list[str]:
    return orchestrate("run", study, "--storage", storage.root, "--no-preflight")


def read_only(disk: Path) -> None:
    while subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode:
        time.sleep(0.01)  # refused while a file is open for writing


def writable(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


@pytest.mark.parametrize(
    ("break_", "repair", "reason"),
    [(fill, empty, "No space left on device"), (read_only, writable, "Read-only file system")],
    ids=["full", "read-only"],
)
def test_a_study_without_a_writable_disk_ends_and_resumes_later(
    disk: Path,
    tmp_path: Path,
    break_: Callable[[Path], None],
    repair: Callable[[Path], None],
    reason: str,
    undisturbed: Results,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", f"a disk error: {reason}")
    storage, study = Storage.at(disk / "runs"), tmp_path / "study.yaml"
    study.write_text(json.dumps(STUDY))
    with (tmp_path / "output.txt").open("w") as output:
        driver = subprocess.Popen(command(study, storage), stdout=output, stderr=output)
        while not any(state.state == "completed" for state in read_log(storage).states().values()):
            assert driver.poll() is None, (tmp_path / "output.txt").read_text()
            time.sleep(0.05)
        break_(disk)
        assert driver.wait(180) == 2
    text = (tmp_path / "output.txt").read_text()
    assert f"is not writable: {reason}" in text
    assert "the same command" in text
    assert "Traceback" not in text
    states = Counter(state.state for state in read_log(storage).states().values())
    assert set(states) <= {"completed", "running"}, "a trial failed because of the disk"
    repair(disk)
    done = subprocess.run(command(study, storage), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_log(storage, "full", undisturbed)
    assert [finding for finding in findings(storage) if finding.is_problem] == []
