"""Addresses that cannot be joined, and the runtime_env of a job."""

import json
import time
from pathlib import Path

import pytest

import kdr
from kdr.errors import ResourcesError
from kdr.run.cluster.ray_session import QUIET, job_runtime_env, ray_session


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://head:8265", "that is the dashboard's port"),
        ("http://head:80", "another form"),
        ("ray://head:10001", "that is the port of Ray Client"),
        ("head", "another form"),
        ("head:8265", "that is the dashboard's port"),
        ("head:10001", "that is the port of Ray Client, which cannot run Tune"),
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


def test_a_job_keeps_the_runtime_env_it_was_submitted_with(
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
    assert set(mine) == {"env_vars"}, "the job has sent its own code"
    assert set(QUIET) - set(mine["env_vars"]) == {"RAY_AIR_NEW_OUTPUT"}


def test_the_code_sent_is_the_package_of_this_process(tmp_path: Path) -> None:
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
