"""The JSON schema with which editors check study files."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from kdr.config.overrides import changed
from kdr.config.schema import study_schema
from kdr.config.strict_yaml import read_yaml

ROOT = Path(__file__).parents[2]
STUDIES = sorted((ROOT / "search_spaces").glob("*.yaml"))
QUICKSTART: dict[str, Any] = yaml.safe_load(
    (ROOT / "search_spaces" / "quickstart.yaml").read_text()
)


def problems(content: Any) -> list[str]:
    return [
        error.message
        for error in jsonschema.Draft202012Validator(study_schema()).iter_errors(content)
    ]


def test_the_schema_on_disk_is_up_to_date() -> None:
    fix = "run: kdr schema > docs/study.schema.json"
    assert json.loads((ROOT / "docs" / "study.schema.json").read_text()) == study_schema(), fix


def test_the_schema_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(study_schema())


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_shipped_study_names_the_schema_and_matches_it(path: Path) -> None:
    first_line = path.read_text().splitlines()[0]
    assert first_line == "# yaml-language-server: $schema=../docs/study.schema.json"
    assert (path.parent / first_line.split("=")[1]).resolve() == ROOT / "docs" / "study.schema.json"
    assert problems(read_yaml(path)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"search.sampler": "tpe"},
        {"search.stop_early": "none"},
        {"search.stop_early": "asha"},
        {"search.sampler": {"grid": {}}},
        {"trial.distill": {}, "trial.teacher": None},
        {"trial.student.anchor_scale": None},
        {"keep_weights": "all"},
        {"resources.gpus_per_worker": "auto"},
    ],
    ids=str,
)
def test_valid_settings_match_the_schema(changes: dict[str, Any]) -> None:
    assert problems(changed(QUICKSTART, changes)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"serach": {}},
        {"trial.distil": {}},
        {"trial.student.bakcbone": "resnet50"},
        {"trial.student.backbone": "resnet19"},
        {"trial.training.epochs": "four"},
        {"trial.training.epochs": 0},
        {"trial.training.lr": -1},
        {"trial.data.dataset": "voc"},
        {"search.sampler": "cmaes"},
        {"search.stop_early": "hyperband"},
        {"search.parameters": {"distill.kdr.weight": {"flaot": [0.1, 5]}}},
        {"resources.workers": 0},
        {"study": "two words"},
    ],
    ids=str,
)
def test_typical_mistakes_do_not_match_the_schema(changes: dict[str, Any]) -> None:
    assert problems(changed(QUICKSTART, changes)) != []


def test_every_setting_has_a_description() -> None:
    schema = study_schema()
    assert schema["properties"]["search"].get("description")
    for name, definition in schema["$defs"].items():
        undescribed = [
            field
            for field, keywords in definition.get("properties", {}).items()
            if not {"description", "$ref"} & keywords.keys()
        ]
        assert undescribed == [], name
