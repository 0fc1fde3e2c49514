"""A storage that becomes unreachable while a study runs, and comes back."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdr.results.reader import read_log
from kdr.storage.files import listed
from kdr.storage.layout import Storage
from tests.bucket_server import BucketServer, bucket_server
from tests.faults.invariants import check_log, results_of
from tests.faults.processes import orchestrate

pytestmark = [pytest.mark.faults, pytest.mark.ray]


@pytest.fixture
def server() -> Iterator[BucketServer]:
    with bucket_server() as running:
        yield running


def test_a_study_survives_a_bucket_that_is_unreachable_for_half_a_minute(
    server: BucketServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "an object store that is unreachable for half a minute")
    monkeypatch.setenv("KDR_LOCAL", str(tmp_path / "local"))
    storage = server.place("bucket")
    study = tmp_path / "study.yaml"
    training = {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"}
    mobilenet = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
    trial = {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 24,
            "num_val": 8,
            "search_split": 8,
        },
        "teacher": {**mobilenet, "training": {**training, "epochs": 1}},
        "student": mobilenet,
        "distill": {"kdr": {}},
        "training": {**training, "epochs": 2},
    }
    search = {"trials": 2, "parameters": {"distill.kdr.weight": {"float": [0.1, 50], "log": True}}}
    study.write_text(
        json.dumps(
            {"study": "s", "trial": trial, "search": search, "resources": {"max_concurrent": 1}}
        )
    )

    def run(place: Storage, meanwhile: Callable[[], None] = lambda: None) -> str:
        command = orchestrate("run", study, "--storage", place.root)
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path
        ) as process:
            meanwhile()
            text = process.communicate()[0].decode()
        assert process.returncode == 0, text
        return text

    def outage() -> None:
        while not any(state.role == "student" for state in read_log(storage).states().values()):
            time.sleep(0.05)
        server.stop()
        time.sleep(30)
        server.start()

    text = run(storage, outage)
    assert "The storage is unreachable (" in text
    assert "2 trials run" in text
    states = read_log(storage).states()
    assert [state.state for state in states.values()] == ["completed"] * 3
    assert [path.name for path in listed(storage.log / "trials" / "study=s", "c-*.json")] != []
    assert "0 trials run" in run(storage)
    assert read_log(storage).states() == states
    assert listed(storage.drivers("s")) == []
    assert len(listed(storage.preflight("s"), "*.png")) > 0
    assert {path.name for path in listed(storage.root)} == {
        "log",
        "trials",
        "teachers",
        "preflight",
        "drivers",
        "writable",
    }
    assert not (tmp_path / "runs").exists()

    undisturbed = Storage.at(tmp_path / "undisturbed")
    run(undisturbed)
    check_log(storage, "s", results_of(undisturbed, "s"))
