"""`doctor` reports what works and what does not, with a fix. Every failure here is real."""

import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from kdr.cli.app import app
from kdr.cli.checks import (
    all_checks,
    ray_tokens,
    run_checks,
    storage_folder,
    study_data,
    study_detectors,
    study_loggers,
    study_preflight,
    torch_pair,
)
from kdr.config.data import SHAPE_CLASSES
from kdr.config.detector import DetectorConfig
from kdr.config.overrides import changed
from kdr.config.study import Study, study_from
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import save_student
from kdr.errors import DataError
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.training.findings import Finding

CONTENT: dict[str, Any] = {
    "study": "small",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 8, "num_val": 2},
        "teacher": {
            "backbone": "mobilenet_v3_small",
            "fpn_channels": 32,
            "training": {"epochs": 1},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
    },
}


def study_with(changes: dict[str, Any] | None = None) -> Study:
    return study_from(changed(CONTENT, changes or {}), folder=Path("/"))


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


def test_a_check_that_raises_fails_and_the_others_still_run() -> None:
    def breaks() -> Any:
        raise DataError("x.json: must be there")
        yield

    def surprises() -> Any:
        yield Finding("first", "ok", "done")
        raise ZeroDivisionError("never")

    found = list(run_checks({"data": breaks, "more": surprises}))
    assert [(finding.name, finding.state, finding.text) for finding in found] == [
        ("data", "failed", "x.json: must be there"),
        ("first", "ok", "done"),
        ("more", "failed", "ZeroDivisionError: never"),
    ]


def test_the_installation_passes(storage: Storage) -> None:
    checks = all_checks(storage, address=None, study=None)
    found = list(run_checks({name: checks[name] for name in ("packages", "torch", "device")}))
    assert {finding.state for finding in found} <= {"ok", "warning"}
    assert any("torchvision" in finding.text for finding in found)
    assert next(torch_pair()).state == "ok"


def test_a_storage_that_is_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    [found] = run_checks({"storage": lambda: storage_folder(Storage.at(tmp_path / "runs"))})
    assert found.state == "failed"
    assert found.text.startswith("--storage: must be a writable folder, got")


def test_a_damaged_file_of_the_log_is_named(example_log: Any) -> None:
    example_log.trial("a" * 20)
    path = next(example_log.storage.log.rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:100])
    found = list(storage_folder(example_log.storage))
    assert [finding.state for finding in found] == ["ok", "failed"]
    assert path.name in found[1].text
    assert found[1].fix == "kdr log check --quarantine"


def test_the_source_of_rays_token_is_reported_but_not_the_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    [found] = ray_tokens()
    assert found.state == "failed"
    assert "no token" in found.text
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    [found] = ray_tokens()
    assert found.state == "ok"
    assert "RAY_AUTH_TOKEN" in found.text
    assert "secret" not in f"{found.text} {found.fix}"


def test_a_logger_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    [found] = run_checks(
        {"loggers": lambda: study_loggers(study_with({"loggers": ["tensorboard"]}))}
    )
    assert (found.state, found.text) == ("ok", "tensorboard")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    [found] = run_checks({"loggers": lambda: study_loggers(study_with({"loggers": ["mlflow"]}))})
    assert found.state == "failed"
    assert found.text.endswith("pip install mlflow-skinny")


def test_missing_data_is_named(storage: Storage) -> None:
    paths = {
        name: f"/nowhere/{name}"
        for name in ("train_images", "train_annotations", "val_images", "val_annotations")
    }
    study = study_with({"trial.data": {"dataset": "coco", **paths}})
    [found] = run_checks({"data": lambda: study_data(study, storage)})
    assert found.state == "failed"
    assert "/nowhere/train_annotations" in found.text


@pytest.mark.slow
def test_levels_weights_and_labels_of_a_study_are_reported(
    storage: Storage, tmp_path: Path
) -> None:
    found = {
        finding.name: finding
        for finding in study_detectors(
            study_with({"trial.teacher.detector": "faster_rcnn"}), storage
        )
    }
    assert found["teacher"].text == "the study trains it"
    assert found["levels"].state == "warning"
    assert found["levels"].text == "P3 from P3, P4 from P4, P5 from P5, P6 from P6; unmatched: P7"
    torch.save({"nothing": torch.zeros(1)}, tmp_path / "weights.pt")
    other = study_with(
        {
            "trial.teacher": {
                "backbone": "mobilenet_v3_small",
                "weights": str(tmp_path / "weights.pt"),
            }
        }
    )
    [failed] = run_checks({"detectors": lambda: study_detectors(other, storage)})
    assert failed.state == "failed"
    assert "must fill at least 90% of the backbone's keys, got 0%" in failed.text


@pytest.mark.slow
def test_the_used_part_of_another_librarys_file_is_reported(
    storage: Storage, mmdetection_file: Callable[..., str]
) -> None:
    teacher = {"backbone": "resnet18", "fpn_channels": 32, "weights": mmdetection_file(None)}
    [failed] = run_checks(
        {"detectors": lambda: study_detectors(study_with({"trial.teacher": teacher}), storage)}
    )
    assert failed.text.endswith("not torchvision's. Set weights_layout: mmdetection")
    study = study_with({"trial.teacher": {**teacher, "weights_layout": "mmdetection"}})
    loaded, used = (
        finding.text for finding in study_detectors(study, storage) if finding.name == "teacher"
    )
    assert (
        "teacher.pth: loaded 100% of the backbone, 100% of the neck, 90% of the head; 2 with "
        "different shape or classes: " in loaded
    )
    assert used.endswith("part of its head has no weights: features only")


def test_the_pre_flight_waits_for_a_teacher_that_the_study_trains(storage: Storage) -> None:
    [found] = study_preflight(study_with(), storage)
    assert (found.state, found.text) == (
        "ok",
        "skipped: `kdr run` does it once the study has trained its teacher",
    )


@pytest.mark.slow
def test_the_pre_flight_measures_once_and_judges_each_time(
    storage: Storage, tmp_path: Path
) -> None:
    config = DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=32)
    save_student(
        LocalPath(tmp_path / "teacher.pt"),
        build_detector(config, SHAPE_CLASSES[:6], seed=0),
        extra={},
    )
    teacher = {
        "backbone": "mobilenet_v3_small",
        "fpn_channels": 32,
        "weights": str(tmp_path / "teacher.pt"),
    }
    states = {
        finding.name: finding.state
        for finding in study_preflight(study_with({"trial.teacher": teacher}), storage)
    }
    assert set(states) == {
        "teacher's AP",
        "loaded",
        "features",
        "masks",
        "losses",
        "gradients",
        "teacher frozen",
    }
    assert states["teacher frozen"] == "ok"
    begin = time.monotonic()
    stated = study_with({"trial.teacher": {**teacher, "stated_ap": 0.9}})
    assert {
        finding.name for finding in study_preflight(stated, storage) if finding.state == "failed"
    } == {"teacher's AP"}
    assert time.monotonic() - begin < 1


def test_a_problem_of_several_checks_is_reported_once() -> None:
    def breaks() -> Any:
        raise DataError("x.json: must be there")
        yield

    assert [finding.name for finding in run_checks({"data": breaks, "detectors": breaks})] == [
        "data"
    ]


@pytest.mark.ray
def test_a_valid_study_passes_and_json_has_the_findings(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CONTENT))
    asked = [str(tmp_path / "study.yaml"), "--storage", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, ["doctor", *asked, "--json"])
    content = json.loads(result.stdout)
    assert result.exit_code == 0, result.stdout
    assert content["failed"] == 0
    assert {"packages", "Ray", "resources", "training data", "levels"} <= {
        finding["name"] for finding in content["findings"]
    }


@pytest.mark.ray
def test_a_study_that_cannot_run_here_fails_with_a_fix(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({**CONTENT, "resources": {"cpus_per_worker": 1000}})
    )
    result = CliRunner().invoke(
        app, ["doctor", str(tmp_path / "study.yaml"), "--storage", str(tmp_path / "runs")]
    )
    assert result.exit_code == 2
    assert "one trial needs 1000 CPUs" in result.stdout
    assert "1 failed" in result.stdout
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**CONTENT, "serach": {}}))
    result = CliRunner().invoke(
        app, ["doctor", str(tmp_path / "study.yaml"), "--storage", str(tmp_path / "runs")]
    )
    assert result.exit_code == 2
    assert "serach: no such setting. Did you mean 'search'?" in result.stdout


@pytest.mark.ray
def test_an_unreachable_cluster_is_a_failure(tmp_path: Path) -> None:
    begin = time.monotonic()
    checks = all_checks(Storage.at(tmp_path), address="127.0.0.1:1", study=None)
    [found] = run_checks({"Ray": checks["Ray"]})
    assert found.state == "failed"
    assert found.text.startswith("--address: must be a running Ray cluster ")
    assert "got 127.0.0.1:1 " in found.text
    assert time.monotonic() - begin < 60
