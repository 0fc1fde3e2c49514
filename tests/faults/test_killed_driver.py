"""A driver that is killed at many moments of its study while Ray keeps running: repeating the
command completes the study."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from ray.util.placement_group import placement_group_table

from kdr.storage.layout import Storage
from tests.faults.invariants import check_log, check_nothing_is_left, none, results_of
from tests.faults.processes import TRIAL_TITLES, Run, finished
from tests.faults.simulation import NUM_SCHEDULES

pytestmark = [pytest.mark.faults, pytest.mark.ray]

# 8 by default, 33 in a long run with KDR_FAULT_SCHEDULES=200
NUM_KILLS = max(8, NUM_SCHEDULES // 6)
TRAINING = {"epochs": 3, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"}
MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
STUDY: dict[str, Any] = {
    "study": "killed",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 32, "num_val": 8},
        "teacher": {**MOBILENET, "training": {**TRAINING, "epochs": 2}},
        "student": MOBILENET,
        "distill": {"kdr": {}},
        "training": TRAINING,
    },
    "ablation": {
        "design": "arms",
        "arms": {"light": {"distill.kdr.weight": 0.5}},
        "seeds": {"count": 3},
    },
    "resources": {"max_concurrent": 2},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    return path


def kill(run: Run, random: Random) -> str:
    """Kills the driver at a random moment, some seconds or some files of the log after its start;
    returns the moment."""
    before, begin = num_files(run.storage), time.monotonic()
    num_new, seconds = random.randrange(1, 8), random.uniform(0.0, 15.0)
    by_files = random.random() < 0.7
    while run.driver.poll() is None and time.monotonic() - begin < 90:
        if (
            num_files(run.storage) >= before + num_new
            if by_files
            else time.monotonic() - begin >= seconds
        ):
            break
        time.sleep(0.002)
    if by_files:
        time.sleep(random.uniform(0.0, 0.02))
    run.driver.kill()
    run.close()
    return f"after {num_new} files" if by_files else f"after {seconds:.1f} s"


def num_files(storage: Storage) -> int:
    return len(list(storage.local.glob("log/v1/*/*/part-*.parquet")))


def check_nothing_runs(within_s: float = 10.0) -> None:
    """Asserts that Ray no longer holds anything of a study."""
    end = time.monotonic() + within_s
    while (left := [*trial_processes(), *held_groups()]) and time.monotonic() < end:
        time.sleep(0.1)
    none("left behind", left)


def held_groups() -> list[str]:
    return [name for name, group in placement_group_table().items() if group["state"] != "REMOVED"]


def trial_processes() -> list[str]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if line.startswith(TRIAL_TITLES) or "RayTrainWorker" in line:
            found.append(line)
    return found


def test_repeated_kills_of_the_driver_lose_and_double_nothing(
    address: str, study: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "kill -9 of the driver at random moments")
    record_property("times", NUM_KILLS)
    undisturbed, storage = Storage.at(tmp_path / "undisturbed"), Storage.at(tmp_path / "disturbed")
    finished(Run(study, undisturbed, "--address", address))
    expected = results_of(undisturbed, "killed")
    assert sorted({result[0] for result in expected.values()}) == ["completed"]
    assert len(expected) == 1 + 2 * 3, "the teacher, and two arms"
    random, moments = Random(0), list[str]()
    while len(moments) < NUM_KILLS:
        run = Run(study, storage, "--address", address)
        moments.append(kill(run, random))
        check_nothing_runs()
        check_log(storage, "killed")
        if results_of(storage, "killed") == expected:  # completed before the next kill: start over
            check_nothing_is_left(storage, check_log(storage, "killed", expected))
            shutil.rmtree(storage.local)
    finished(Run(study, storage, "--address", address))
    check_log(storage, "killed", expected)
    check_nothing_runs()
    print(f"{len(moments)} kills: {', '.join(moments)}")
