"""How many trials fit on a cluster, worked out from the resources of its nodes; which addresses
cannot be joined."""

import json
import time
from pathlib import Path

import pytest

import kdr
from kdr.config.study import Resources
from kdr.errors import ResourcesError
from kdr.run.cluster.ray_session import (
    QUIET,
    job_runtime_env,
    num_concurrent,
    ray_session,
    resolved,
)

LAPTOP = [{"CPU": 2.0}]
SERVER = [{"CPU": 64.0, "GPU": 8.0}]
SEVERAL = [{"CPU": 4.0}, {"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0, "GPU": 3.0}]


def test_auto_is_one_gpu_per_worker_where_there_are_any() -> None:
    assert resolved(Resources(), SEVERAL).gpus_per_worker == 1
    assert resolved(Resources(), LAPTOP).gpus_per_worker == 0
    assert resolved(Resources(gpus_per_worker=0), SERVER).gpus_per_worker == 0


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        (Resources(gpus_per_worker=0), LAPTOP, 2),
        (Resources(gpus_per_worker=0, cpus_per_worker=0.5), LAPTOP, 4),
        (Resources(workers=2, gpus_per_worker=0), LAPTOP, 1),
        (Resources(workers=2, gpus_per_worker=0), [*LAPTOP, *LAPTOP], 2),
        (Resources(workers=4, gpus_per_worker=0), [*LAPTOP, *LAPTOP], 1),  # spread over two nodes
        (Resources(gpus_per_worker=1), SERVER, 8),
        (Resources(gpus_per_worker=1), SEVERAL, 5),
        (Resources(gpus_per_worker=2), SEVERAL, 2),
        (Resources(workers=2, gpus_per_worker=1), SEVERAL, 2),
        (Resources(gpus_per_worker=0.5), SEVERAL, 10),
        (Resources(gpus_per_worker=0.4), SEVERAL, 10),  # a fraction is of one GPU: two on each
        (Resources(gpus_per_worker=1 / 3, cpus_per_worker=0.5), [{"CPU": 64.0, "GPU": 1.0}], 3),
        (Resources(gpus_per_worker=1, cpus_per_worker=8), SEVERAL, 4),  # CPUs run out first
        (Resources(gpus_per_worker=1, max_concurrent=3), SERVER, 3),
    ],
)
def test_as_many_trials_run_as_fit(
    resources: Resources, nodes: list[dict[str, float]], expected: int
) -> None:
    assert num_concurrent(resources, nodes) == expected


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (
            Resources(gpus_per_worker=1),
            r"one trial needs 1 CPUs and 1 GPUs on one node, got nodes with 2 CPUs and 0 GPUs",
        ),
        (
            Resources(workers=3, gpus_per_worker=0),
            r"needs 3 workers with 1 CPUs and 0 GPUs each, .* room for 2 workers. Lower",
        ),
        (Resources(cpus_per_worker=3, gpus_per_worker=0), r"needs 3 CPUs and 0 GPUs on one node"),
    ],
)
def test_a_trial_that_can_never_fit_is_refused(resources: Resources, message: str) -> None:
    with pytest.raises(ResourcesError, match=message):
        num_concurrent(resources, LAPTOP)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://head:8265", "that is the dashboard's port"),
        ("http://head:80", "another form"),
        ("ray://head:10001", "that is the port of Ray Client"),
        ("head", "another form"),
        ("head:8265", "that is the dashboard's port"),
        ("head:10001", "that is the port of Ray Client, through which Tune does not run"),
        ("127.0.0.1:1", "Connection refused"),
    ],
)
def test_an_address_that_cannot_be_joined_is_refused_at_once(address: str, reason: str) -> None:
    begin = time.monotonic()
    with pytest.raises(
        ResourcesError,
        match=rf"^--address: .*got {address}.*{reason}.*submit a job: docs/cluster.md",
    ):
        ray_session(address).__enter__()
    assert time.monotonic() - begin < 10


def test_a_job_keeps_what_it_was_submitted_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert job_runtime_env(None) == {"env_vars": QUIET}
    submitted = {
        "runtime_env": {
            "env_vars": {"RAY_AIR_NEW_OUTPUT": "1", "KDR_STORAGE": "/runs"},
            "working_dir": "gcs://a.zip",
        }
    }
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    mine = job_runtime_env(tmp_path)
    assert set(mine) == {"env_vars"}, "its own code has been sent"
    assert set(QUIET) - set(mine["env_vars"]) == {"RAY_AIR_NEW_OUTPUT"}


def test_the_code_that_is_sent_is_the_package_of_this_process(tmp_path: Path) -> None:
    assert job_runtime_env(tmp_path)["working_dir"] == str(tmp_path)
    package = Path(kdr.__file__).parent
    files = {
        path.relative_to(package)
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {
        path.relative_to(tmp_path / "kdr") for path in tmp_path.rglob("*") if path.is_file()
    } == files
