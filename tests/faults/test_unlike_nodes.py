"""A node whose storage, data and code differ from the others': `doctor` reports it, and `run` does
not start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import kdr
from kdr.config.data import ShapesData
from kdr.data.splits import open_splits
from kdr.storage.layout import Storage
from tests.faults.cluster import open_cluster

pytestmark = [pytest.mark.faults, pytest.mark.ray]


def coco_data(folder: Path, *, seed: int) -> dict[str, str]:
    """Generated images in a folder, in COCO format, at paths independent of the seed."""
    splits = open_splits(
        ShapesData(dataset="shapes", num_train=4, num_val=4, seed=seed),
        Storage.at(folder / "generated"),
    )
    paths = {}
    for half, index in (("train", splits.train), ("val", splits.evaluation)):
        for name, target in (
            ("images", index.paths[0].parent),
            ("annotations", index.annotations),
        ):
            (folder / f"{half}_{name}").symlink_to(target)
            paths[f"{half}_{name}"] = str(folder / f"{half}_{name}")
    return paths


def test_differences_between_nodes_are_reported_before_anything_runs(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a node with other versions, data and files")
    data, runs, others, code = (tmp_path / name for name in ("data", "runs", "others", "code"))
    runs.mkdir()
    paths = coco_data(data, seed=0)
    coco_data(others, seed=1)
    here = Path(kdr.__file__).parent
    shutil.copytree(here, code)
    (code / "__init__.py").write_text(
        (here / "__init__.py").read_text().replace(kdr.__version__, "0.0.9")
    )
    content = {
        "study": "unlike",
        "trial": {"data": {"dataset": "coco", **paths}, "student": {"backbone": "resnet18"}},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    mounts = [
        f"mount -t tmpfs tmpfs {runs}",
        f"mount --bind {others} {data}",
        f"mount --bind {code} {here}",
    ]
    with open_cluster() as cluster:
        cluster.add_node()
        if not cluster.has_networks:
            pytest.skip("needs a node with its own mounts")
        cluster.add_node(
            wrap=("unshare", "--mount", "sh", "-c", " && ".join([*mounts, 'exec "$@"']), "sh")
        )
        asked = [tmp_path / "study.yaml", "--storage", runs, "--address", cluster.address]

        def failures(*more: object) -> list[str]:
            doctor = cluster.orchestrate("doctor", *asked, "--json", "--no-preflight", *more)
            text = cluster.output(doctor)
            assert doctor.returncode == 2, text
            return [
                finding["text"]
                for finding in json.loads(text)["findings"]
                if finding["state"] == "failed"
            ]

        own_code, own_storage, own_data = failures()
        assert own_code.startswith(f"kdr must be {kdr.__version__} (code ")
        assert "on every node, got 0.0.9 (code " in own_code
        assert own_storage.startswith(
            f"--storage: must be the same place on every node, got {runs} with no files of "
        )
        assert own_data.startswith("data: must be the same on every node, got ")
        assert failures("--send-code") == [own_storage, own_data]
        run = cluster.orchestrate("run", *asked)
        assert f"cluster: {own_storage}" in cluster.output(run)
        assert run.returncode == 2
