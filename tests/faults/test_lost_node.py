"""A cluster node dies during a study: its trial resumes from its checkpoint on another node."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdr.results.reader import read_log
from kdr.storage.layout import Storage
from tests.faults.cluster import Cluster, open_cluster
from tests.faults.invariants import Results, check_log, results_of

pytestmark = [pytest.mark.faults, pytest.mark.ray]

# enough: an epoch is in the log only seconds later, and a process may outlive its raylet by seconds
EPOCHS = 16
STUDY: dict[str, Any] = {
    "study": "lost",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 96, "num_val": 8},
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {},
        "training": {
            "epochs": EPOCHS,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "constant",
        },
    },
    "ablation": {
        "design": "arms",
        "arms": {"slow": {"training.lr": 1e-4}},
        "seeds": {"count": 1, "first": 0},
        "margin": 0.01,
    },
}
LEFT = """
from ray.util.placement_group import placement_group_table
from ray.util.state import list_actors
groups = placement_group_table().values()
actors = list_actors(filters=[("state", "!=", "DEAD")], address=sys.argv[2])
result = {
    "groups": [group["state"] for group in groups if group["state"] != "REMOVED"],
    "actors": [actor.class_name for actor in actors],
    "cpus": ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0),
}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of a head; each test adds the node that it kills."""
    with open_cluster() as opened:
        opened.add_node()
        yield opened


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, study: Path, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The study's results on the head alone."""
    quiet = Storage.at(tmp_path_factory.mktemp("quiet") / "runs")
    assert "2 trials run" in cluster.output(run(cluster, study, quiet))
    return results_of(quiet, "lost")


def run(cluster: Cluster, study: Path, storage: Storage) -> subprocess.Popen[str]:
    return cluster.orchestrate(
        "run", study, "--storage", storage.root, "--address", cluster.address, "--no-preflight"
    )


@pytest.mark.parametrize(
    "unplugged", [False, True], ids=["its raylet is killed", "it is unplugged"]
)
def test_a_trial_resumes_from_its_checkpoint_when_its_node_dies(
    unplugged: bool,
    cluster: Cluster,
    study: Path,
    undisturbed: Results,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "kill of a node: " + ("unplugged" if unplugged else "its raylet"))
    storage = Storage.at(tmp_path / "runs")
    node = cluster.add_node()
    disturbed = run(cluster, study, storage)

    def both_run() -> bool:
        reached = [state.epoch for state in read_log(storage).states_of("lost").values()]
        return len(reached) == 2 and min(reached) >= 2 and max(reached) < EPOCHS - 7

    cluster.wait_for(both_run)
    (node.unplug if unplugged else node.raylet.kill)()
    text = cluster.output(disturbed)
    assert disturbed.returncode == 0, text
    log = check_log(storage, "lost", undisturbed)
    events = [
        [row["event"] for row in log.trials.to_pylist() if row["key"] == key]
        for key in log.keys_of("lost")
    ]
    assert sorted(events) == [["started", "completed"], ["started", "resumed", "completed"]]
    cluster.wait_for(lambda: not any(cluster.python(LEFT, cluster.dashboard).values()), within_s=10)
