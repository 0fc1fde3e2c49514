"""Two studies with several workers per trial on a cluster of different nodes: where workers are
placed, and which study waits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdr.storage.layout import Storage
from tests.faults.cluster import Cluster, open_cluster
from tests.faults.invariants import check_log

pytestmark = [pytest.mark.faults, pytest.mark.ray]

TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 48, "num_val": 6},
    "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
    "distill": {},
    "training": {
        "epochs": 8,
        "batch_size": 6,
        "optimizer": "adamw",
        "lr": 1e-3,
        "schedule": "constant",
    },
}
BUNDLES = """
from ray.util.placement_group import placement_group_table
addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
result = sorted(
    addresses[node]
    for group in placement_group_table().values() if group["state"] == "CREATED"
    for number, node in group["bundles_to_node_id"].items() if group["bundles"][number].get("CPU")
)
"""


def start(cluster: Cluster, folder: Path, name: str, *, workers: int) -> Any:
    path = folder / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump({"study": name, "trial": TRIAL, "resources": {"workers": workers}})
    )
    return cluster.orchestrate(
        "run", path, "--storage", folder / "runs", "--address", cluster.address, "--no-preflight"
    )


def test_workers_are_packed_or_else_spread_and_a_study_without_room_waits(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "two studies on one cluster, with no room for the second")
    with open_cluster() as cluster:
        small, large = cluster.add_node(1), cluster.add_node(2)
        first = start(cluster, tmp_path, "first", workers=2)
        assert cluster.wait_for(lambda: cluster.python(BUNDLES)) == [large.address] * 2
        second = start(cluster, tmp_path, "second", workers=3)
        cluster.wait_for(lambda: first.poll() is not None)
        assert cluster.wait_for(lambda: cluster.python(BUNDLES)) == sorted(
            [small.address, large.address, large.address]
        )
        text = cluster.output(second)
        assert (first.returncode, second.returncode) == (0, 0), text + cluster.output(first)
        assert (
            "Waiting for room: one trial needs 3 workers with 1 CPUs and 0 GPUs each; free: 1 "
            "CPUs and 0 GPUs." in text
        )
        assert "first.yaml" in text[text.index("Held by: ") :]
        for study in ("first", "second"):
            [trial] = check_log(Storage.at(tmp_path / "runs"), study).states_of(study).values()
            assert trial.state == "completed"
