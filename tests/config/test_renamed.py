"""Renamed settings: the old name works everywhere, with a note; both names are an error."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import kdr
from kdr.config import renamed
from kdr.config.reference import settings_groups, settings_reference
from kdr.config.renamed import RENAMED, present_names
from kdr.config.schema import study_schema
from kdr.config.strict_yaml import read_yaml
from kdr.config.study import read_study, study_from
from kdr.errors import ConfigError
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage

ROOT = Path(kdr.__file__).parents[1]
STUDY: dict[str, Any] = {"study": "s", "trial": {"data": {"dataset": "shapes"}}}
NOTE = "faults.alike: renamed to faults.abort_after"
BOTH = "faults.alike: must not be set together with its new name, got both. Keep faults.abort_after"


@pytest.fixture
def trial_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A setting of the trial and a group of it, both renamed."""
    names = {
        "trial.training.rate": "trial.training.lr",
        "trial.distill.review": "trial.distill.kdr",
    }
    monkeypatch.setattr(renamed, "RENAMED", names)


def written(folder: Path, faults: str = "") -> Path:
    path = folder / "study.yaml"
    path.write_text("study: s\ntrial: {data: {dataset: shapes}}\n" + faults)
    return path


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_setting_exists_in_the_group_of_its_old_name(old: str, new: str) -> None:
    group, _, name = new.rpartition(".")
    assert old.rpartition(".")[0] == group
    fields = [set(model.model_fields) for path, model in settings_groups() if path == group]
    assert any(name in found for found in fields)
    assert not any(old.rpartition(".")[2] in found for found in fields)


@pytest.mark.parametrize(
    ("faults", "overrides", "value", "sources"),
    [
        ("faults: {alike: 7}", [], 7, ["study.yaml"]),
        ("faults: {abort_after: 7}", [], 7, []),
        ("", ["faults.alike=7"], 7, ["--set"]),
        ("", ["faults={alike: 7}"], 7, ["--set"]),
        ("faults: {alike: 7}", ["faults.abort_after=8"], 8, ["study.yaml"]),
        ("faults: {abort_after: 7}", ["faults.alike=8"], 8, ["--set"]),
        ("faults: {alike: 7}", ["faults.alike=8"], 8, ["study.yaml", "--set"]),
    ],
)
def test_an_old_name_works_and_its_place_is_named(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    faults: str,
    overrides: list[str],
    value: int,
    sources: list[str],
) -> None:
    with caplog.at_level(logging.WARNING):
        study = read_study(path := written(tmp_path, faults), overrides)
    assert study.faults.abort_after == value
    places = [str(path) if source == "study.yaml" else source for source in sources]
    assert caplog.messages == [
        f"warning: {place}: {NOTE}. The next release drops the old name" for place in places
    ]


@pytest.mark.parametrize(
    ("faults", "overrides"),
    [
        ("faults: {alike: 7, abort_after: 7}", []),
        ("", ["faults.alike=7", "faults.abort_after=7"]),
        ("", ["faults={alike: 7, abort_after: 8}"]),
    ],
)
def test_both_names_of_a_setting_are_refused(
    tmp_path: Path, faults: str, overrides: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        read_study(written(tmp_path, faults), overrides)
    assert error.value.problems == (BOTH,)


def test_both_names_are_reported_with_the_other_problems() -> None:
    content = STUDY | {"faults": {"alike": 1, "abort_after": 2, "retries": -1}}
    with pytest.raises(ConfigError) as error:
        study_from(content, folder=Path("/"))
    assert error.value.problems == (
        BOTH,
        "faults.retries: must be greater than or equal to 0, got -1",
    )


@pytest.mark.parametrize("faults", [3, None, [], {"alike": None}, {"alike": "3"}], ids=str)
def test_a_wrong_value_is_reported_under_the_new_name(faults: Any) -> None:
    with pytest.raises(ConfigError, match=r"^faults(\.abort_after)?: must be"):
        study_from(STUDY | {"faults": faults}, folder=Path("/"))


def test_the_note_is_shown_plainly_on_stderr(tmp_path: Path) -> None:
    path = written(tmp_path, "faults: {alike: 7}")
    done = subprocess.run(
        [sys.executable, ROOT / "orchestrate.py", "plan", path, "--json", "--storage", tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == f"warning: {path}: {NOTE}. The next release drops the old name\n"
    json.loads(done.stdout)


def test_a_study_in_an_old_log_is_read_without_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, content = Storage.at(tmp_path), json.dumps(STUDY | {"faults": {"alike": 7}})
    with LogWriter(storage, "s") as writer:
        writer.arms([ArmRow(study="s", key="k", arm="trial", study_config=content)])
    logged = read_log(storage).study_content("s")
    assert logged["faults"] == {"abort_after": 7}
    assert study_from(json.loads(content), folder=Path("/")).faults.abort_after == 7
    assert caplog.messages == []


def test_the_schema_accepts_an_old_name_as_deprecated() -> None:
    schema = study_schema()
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(STUDY | {"faults": {"alike": 7}})) == []
    assert list(validator.iter_errors(STUDY | {"faults": {"alike": -1}})) != []
    old = schema["$defs"]["Faults"]["properties"]["alike"]
    assert (old["deprecated"], old["description"]) == (True, "Renamed to `abort_after`.")
    assert "default" not in old


def test_the_reference_names_the_old_name() -> None:
    [row] = [
        line for line in settings_reference().splitlines() if line.startswith("| `abort_after`")
    ]
    assert row.endswith("Formerly `alike`. |")


@pytest.mark.usefixtures("trial_setting")
@pytest.mark.parametrize(
    "question",
    [
        {"search": {"trials": 1, "parameters": {"training.rate": {"float": [0.1, 0.2]}}}},
        {
            "search": {
                "trials": 1,
                "parameters": {
                    "training.rate": {"choice": [0.1, 0.2]},
                    "distill.review.weight": {
                        "float": [1, 2],
                        "when": {"training.rate": 0.1},
                    },
                },
                "enqueue": [{"training.rate": 0.2}, {"distill.review.weight": 1.5}],
            }
        },
        {
            "ablation": {
                "baseline": {"training.rate": 0.1},
                "factors": {"rate": {"low": {"training": {"rate": 0.01}}}},
                "seeds": [0],
            }
        },
        {
            "ablation": {
                "design": "arms",
                "arms": {"low": {"training.rate": 0.01}, "off": {"distill.review": None}},
                "seeds": [0],
            }
        },
    ],
    ids=["search", "condition", "ablation", "arms"],
)
def test_an_old_name_works_as_a_path_of_a_search_or_an_ablation(question: dict[str, Any]) -> None:
    old = STUDY | question
    text = json.dumps(old).replace("training.rate", "training.lr").replace(".review", ".kdr")
    new = json.loads(text.replace('"rate": 0.01', '"lr": 0.01'))
    assert present_names(old).content == new
    assert present_names(new).content == new
    assert present_names(new).notes == ()


@pytest.mark.usefixtures("trial_setting")
def test_both_names_as_searched_paths_are_refused() -> None:
    parameters = {
        "distill.review.weight": {"float": [1, 2]},
        "distill.kdr.weight": {"float": [1, 2]},
    }
    names = present_names(STUDY | {"search": {"trials": 1, "parameters": parameters}})
    assert names.problems == (
        "search.parameters.distill.review.weight: must not be set together with its new name, "
        "got both. Keep search.parameters.distill.kdr.weight",
    )


@pytest.mark.usefixtures("trial_setting")
def test_an_old_name_of_the_trial_works_in_set(tmp_path: Path) -> None:
    assert read_study(written(tmp_path), ["training.rate=0.5"]).base.training.lr == 0.5


@pytest.mark.parametrize(
    "path", sorted((ROOT / "search_spaces").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_shipped_studies_have_present_names_only(path: Path) -> None:
    content = read_yaml(path)
    assert present_names(content).content == content
