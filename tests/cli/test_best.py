import json
from pathlib import Path

import pytest

from kdr.cli.best import command
from kdr.config.study import read_study
from kdr.errors import ConfigError, StorageError
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    example_log.trial("a", parameters={"distill.kdr.weight": 1.0}, AP=0.1, AP50=0.9)
    example_log.trial(
        "b",
        parameters={"distill.kdr.weight": 5.0},
        AP=0.4,
        AP50=0.5,
        weights="trials/b/student.pt",
    )
    return lambda *arguments: invoke(command, *arguments, "--storage", example_log.storage.root)


def test_the_best_trial_is_shown_with_its_settings(ask: Ask) -> None:
    lines = ask("example").stdout.splitlines()
    assert lines[0] == "Best of 2 completed trials by AP"
    assert ["key", "b"] in [line.split() for line in lines]
    assert ["distill.kdr.weight", "5"] in [line.split() for line in lines]


def test_another_metric_may_select_another_trial(ask: Ask) -> None:
    found = json.loads(ask("example", "--metric", "AP50", "--json").stdout)
    assert (found["key"], found["AP50"], found["parameters"]) == (
        "a",
        0.9,
        {"distill.kdr.weight": 1.0},
    )


def test_weights_are_shown_only_if_they_were_kept(ask: Ask, example_log: ExampleLog) -> None:
    assert json.loads(ask("example", "--json").stdout)["weights"] is None
    kept = example_log.storage.trial("b") / "student.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert json.loads(ask("example", "--json").stdout)["weights"] == str(kept)


def test_the_exported_study_can_be_read(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    assert f"kdr train {path}" in ask("example", "--export", path).stdout
    study = read_study(path)
    assert study.base.distill.kdr is not None
    assert (
        study.study,
        study.search,
        study.base.distill.kdr.weight,
        study.base.data.search_split,
    ) == (
        "example-best",
        None,
        5.0,
        0,
    )
    assert "search_split" not in path.read_text().split("study: example-best")[1]


def test_an_unwritable_export_is_an_error(ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--export: cannot write .*file/best.yaml"):
        ask("example", "--export", tmp_path / "file" / "best.yaml")


def test_a_study_without_a_completed_trial_is_an_error(
    invoke: Invoke, example_log: ExampleLog
) -> None:
    example_log.trial("a", event="failed")
    with pytest.raises(
        ConfigError,
        match=(
            r"example has no completed trial with a value for AP \(1 failed\)\. Run the study"
            r" first"
        ),
    ):
        invoke(command, "example", "--storage", example_log.storage.root)
