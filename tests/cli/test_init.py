"""`init`: starters that a new user can plan and run as they are written."""

import fnmatch
import json
import tomllib
from pathlib import Path

import pytest

import kdr
from kdr.cli import init, plan
from kdr.cli.init import STARTERS
from kdr.config.study import Study, read_study
from kdr.errors import ConfigError, StorageError
from kdr.plan.arm_checks import check_design
from kdr.report.study_facts import question_of
from tests.cli.conftest import Invoke

PACKAGE = Path(kdr.__file__).parent
RECIPES = PACKAGE.parent / "search_spaces"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def without_name(study: Study) -> dict[str, object]:
    return study.model_dump(exclude={"study"})


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_passes_plan_in_an_empty_folder(invoke: Invoke, empty: Path, name: str) -> None:
    written = invoke(init.command, name)
    assert files_in(empty) == [f"{name}.yaml"]
    *_, check, run = written.stdout.splitlines()
    assert check.startswith(f"kdr plan {name}.yaml ")
    assert run.startswith(f"kdr run {name}.yaml ")
    found = json.loads(invoke(plan.command, f"{name}.yaml", "--json").stdout)
    assert found["study"] == name
    assert found["warnings"] == []
    if name != "coco":
        assert found["missing_paths"] == []
    assert (
        found["known already"]
        == {
            "quickstart": "0 of 1",
            "ablation": "0 of 18",
            "coco": "cannot be counted here: files are missing, see below",
        }[name]
    )


def test_plan_lists_the_paths_that_the_coco_starter_leaves_to_fill_in(
    invoke: Invoke, empty: Path
) -> None:
    assert "Fill in the four paths" in invoke(init.command, "coco").stdout
    lines = invoke(plan.command, "coco.yaml").stdout.splitlines()
    start = lines.index("Missing on this machine:")
    assert [line.split() for line in lines[start + 2 : -1]] == [
        ["data.train_images", f"{empty}/path/to/train2017"],
        ["data.train_annotations", f"{empty}/path/to/annotations/instances_train2017.json"],
        ["data.val_images", f"{empty}/path/to/val2017"],
        ["data.val_annotations", f"{empty}/path/to/annotations/instances_val2017.json"],
    ]
    assert lines[-1].startswith("Fill in the paths in the study file")


@pytest.mark.parametrize(
    ("name", "recipe"), [("quickstart", "quickstart"), ("ablation", "ablation_quickstart")]
)
def test_a_starter_has_the_trials_of_its_recipe(name: str, recipe: str) -> None:
    ours = read_study(PACKAGE / "starters" / f"{name}.yaml")
    theirs = read_study(RECIPES / f"{recipe}.yaml")
    assert without_name(ours) == without_name(theirs)


def test_the_coco_starter_is_a_shorter_form_of_the_retinanet_recipe() -> None:
    starter = read_study(PACKAGE / "starters" / "coco.yaml")
    recipe = read_study(RECIPES / "coco_retinanet.yaml")
    check_design(starter)
    assert starter.ablation is not None
    assert recipe.ablation is not None
    assert starter.base.student == recipe.base.student
    assert starter.base.teacher is not None
    assert recipe.base.teacher is not None
    assert starter.base.teacher.with_changes(training=None) == recipe.base.teacher.with_changes(
        training=None
    )
    assert starter.ablation.baseline == recipe.ablation.baseline
    assert starter.ablation.arms["kdr"] == recipe.ablation.arms["kdr"]
    changed = {"epochs", "step_epochs", "micro_batch"}
    assert starter.base.training.model_dump(exclude=changed) == recipe.base.training.model_dump(
        exclude=changed
    )


def test_the_first_try_that_the_coco_starter_names_is_a_study() -> None:
    overrides = ["study=try", "training.epochs=1", "teacher.training.epochs=1"]
    overrides += ["ablation.seeds=[0]"]
    path = PACKAGE / "starters" / "coco.yaml"
    for override in overrides:
        assert f"--set {override}" in path.read_text().replace("'", "")
    check_design(read_study(path, overrides))


@pytest.mark.parametrize("name", STARTERS)
def test_a_starter_opens_with_question_command_cost_and_result(name: str) -> None:
    text = (PACKAGE / "starters" / f"{name}.yaml").read_text()
    head = dict(question_of(text))
    assert list(head) == ["Question", "Command", "Cost", "Expected"]
    assert head["Command"].startswith(f"kdr run {name}.yaml")
    comments = sum("#" in line for line in text.splitlines())
    assert comments > len(text.splitlines()) / 4


def test_starters_are_listed_without_a_name(invoke: Invoke, empty: Path) -> None:
    lines = invoke(init.command).stdout.splitlines()
    assert [line.split()[0] for line in lines[: len(STARTERS)]] == list(STARTERS)
    assert files_in(empty) == []


def test_every_starter_has_a_file_and_is_installed_with_the_package() -> None:
    files = sorted((PACKAGE / "starters").iterdir())
    assert [path.name for path in files] == sorted(f"{name}.yaml" for name in STARTERS)
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["kdr"]
    for path in files:
        name = str(path.relative_to(PACKAGE))
        assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def test_an_existing_file_is_overwritten_only_with_force(invoke: Invoke, empty: Path) -> None:
    path = empty / "quickstart.yaml"
    path.write_text("mine")
    message = r"quickstart\.yaml already exists\. Overwrite it with --force, or .* --output"
    with pytest.raises(ConfigError, match=message):
        invoke(init.command, "quickstart")
    assert path.read_text() == "mine"
    invoke(init.command, "quickstart", "--force")
    assert read_study(path).study == "quickstart"


def test_commands_in_a_starter_name_the_written_file(invoke: Invoke, empty: Path) -> None:
    written = invoke(init.command, "ablation", "--output", "my parts.yaml")
    assert "kdr plan 'my parts.yaml'" in written.stdout
    text = (empty / "my parts.yaml").read_text()
    assert "# Command:  kdr run 'my parts.yaml'\n" in text
    assert "ablation.yaml" not in text


@pytest.mark.parametrize("name", ["nothing", "../quickstart", ""])
def test_an_unknown_starter_lists_the_names(invoke: Invoke, empty: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"NAME: must be one of quickstart, ablation, coco, got"):
        invoke(init.command, name)
    assert files_in(empty) == []


def test_an_unwritable_file_is_an_error(invoke: Invoke, empty: Path) -> None:
    with pytest.raises(StorageError, match=r"--output: cannot write no/where\.yaml \(No such"):
        invoke(init.command, "quickstart", "-o", "no/where.yaml")
