"""A cluster of two nodes that requires a token: a study on both, from a node and as a job."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kdr
from kdr.storage.layout import Storage
from tests.faults.cluster import Cluster, open_cluster
from tests.faults.invariants import check_log

pytestmark = [pytest.mark.faults, pytest.mark.ray]

ROOT = Path(kdr.__file__).parents[1]
TOKEN = "a-token-of-this-test"
STUDY: dict[str, Any] = {
    "study": "nodes",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 32, "num_val": 8},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {},
        "training": {
            "epochs": 3,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "ablation": {
        "design": "arms",
        "arms": {"slow": {"training.lr": 1e-4}},
        "seeds": {"count": 2, "first": 0},
        "margin": 0.01,
    },
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN) as opened:
        opened.add_node()
        opened.add_node()
        yield opened


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def findings(cluster: Cluster, *arguments: object, **env: str) -> dict[str, dict[str, str]]:
    """The findings of `doctor`: name of the check -> its last finding."""
    text = cluster.output(cluster.orchestrate("doctor", *arguments, "--json", env=env))
    assert TOKEN not in text
    return {
        finding["name"]: finding
        for finding in json.loads(text[text.index('{"findings"') :])["findings"]
    }


def test_a_study_runs_on_both_nodes_and_every_trial_once(
    cluster: Cluster, study: Path, tmp_path: Path
) -> None:
    asked = [study, "--storage", tmp_path / "runs", "--address", cluster.address]
    found = findings(cluster, *asked)
    assert {name for name, finding in found.items() if finding["state"] != "ok"} == set()
    assert found["versions"]["text"].startswith("equal on 2 nodes: python 3.")
    assert found["shared storage"]["text"].endswith("written by each of 2 nodes, readable on all")
    assert found["files"]["text"] == "data: the same on 2 nodes"
    assert found["resources"]["text"].startswith("2 trials at a time")
    assert "RAY_AUTH_TOKEN" in found["Ray's token"]["text"]
    run = cluster.orchestrate("run", *asked)
    text = cluster.output(run)
    assert run.returncode == 0, text
    assert "Checking the nodes" in text
    rows = check_log(Storage.at(tmp_path / "runs"), "nodes").trials.to_pylist()
    assert sorted(row["event"] for row in rows) == ["completed"] * 4 + ["started"] * 4
    assert [path.name for path in (tmp_path / "runs").glob("check-*")] == []
    again = cluster.output(
        cluster.orchestrate(
            "run", study, "--storage", tmp_path / "runs", env={"RAY_ADDRESS": cluster.address}
        )
    )
    assert "0 trials run" in again


def submitted(cluster: Cluster, *options: object, study: Path) -> str:
    """The output of a job submitted from a machine outside the cluster. Ray refuses jobs until its
    agent is up."""

    def text() -> str | None:
        submit = [
            "ray",
            "job",
            "submit",
            "--working-dir",
            ROOT,
            *options,
            "--",
            "python",
            "orchestrate.py",
            "run",
            study,
        ]
        found = cluster.output(
            cluster.start(*submit, on=2, env={"RAY_API_SERVER_ADDRESS": cluster.dashboard})
        )
        return None if "No available agent to submit job" in found else found

    return str(cluster.wait_for(text))


def test_a_job_is_submitted_and_watched_from_outside_the_cluster(
    cluster: Cluster, study: Path, tmp_path: Path
) -> None:
    environment = json.dumps({"env_vars": {"KDR_STORAGE": str(tmp_path / "runs")}})
    options = ["--no-wait", "--submission-id", "nodes", "--runtime-env-json", environment]
    assert "submitted successfully" in submitted(cluster, *options, study=study)
    status = [
        sys.executable,
        ROOT / "orchestrate.py",
        "status",
        "nodes",
        "--storage",
        tmp_path / "runs",
        "--json",
    ]

    def outside(*command: object) -> str:
        env = {"RAY_API_SERVER_ADDRESS": cluster.dashboard}
        return cluster.output(cluster.start(*command, on=2, env=env))

    def seen() -> Any:
        text = outside(*status)
        return json.loads(text) if text.startswith("{") else {}

    running = cluster.wait_for(
        lambda: (progress := seen()) and progress["counts"].get("running") and progress
    )
    assert running["total"] == 4
    cluster.wait_for(lambda: seen()["is_over"])
    cluster.wait_for(lambda: "succeeded" in outside("ray", "job", "status", "nodes"))
    log = outside("ray", "job", "logs", "nodes")
    assert "4 trials run" in log
    assert "Checking the nodes" in log


def test_a_job_may_not_store_in_the_folder_that_ray_removes(cluster: Cluster, study: Path) -> None:
    assert "--storage: must be a folder that outlives the job, got" in submitted(
        cluster, study=study
    )


def test_without_the_token_the_cluster_is_closed_and_the_error_says_how_to_join(
    cluster: Cluster, tmp_path: Path
) -> None:
    env = {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}
    found = findings(cluster, "--storage", tmp_path, "--address", cluster.address, **env)
    assert found["Ray"]["state"] == "failed"
    assert "set RAY_AUTH_MODE=token" in found["Ray"]["text"]
