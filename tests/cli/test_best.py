import json

import pytest

from kdr.cli.best import command
from kdr.config.study import read_study
from kdr.errors import ConfigError, StorageError


@pytest.fixture
def ask(invoke, example_log):
    example_log.trial("a", parameters={"distill.kdr.weight": 1.0}, AP=0.1, AP50=0.9)
    example_log.trial(
        "b",
        parameters={"distill.kdr.weight": 5.0},
        AP=0.4,
        AP50=0.5,
        weights="trials/b/student.pt",
    )
    return lambda *arguments: invoke(command, *arguments, "--storage", example_log.storage.root)


def test_the_best_trial_is_shown_with_its_settings(ask):
    lines = ask("example").stdout.splitlines()
    assert lines[0] == "The best of 2 completed trials by AP"
    assert ["key", "b"] in [line.split() for line in lines]
    assert ["distill.kdr.weight", "5"] in [line.split() for line in lines]


def test_another_metric_may_choose_another_trial(ask):
    found = json.loads(ask("example", "--metric", "AP50", "--json").stdout)
    assert (found["key"], found["AP50"], found["parameters"]) == (
        "a",
        0.9,
        {"distill.kdr.weight": 1.0},
    )


def test_weights_are_named_only_while_they_are_kept(ask, example_log):
    assert json.loads(ask("example", "--json").stdout)["weights"] is None
    kept = example_log.storage.trial("b") / "student.pt"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"weights")
    assert json.loads(ask("example", "--json").stdout)["weights"] == str(kept)


def test_the_exported_study_is_read_again(ask, tmp_path):
    path = tmp_path / "best.yaml"
    assert f"kdr train {path}" in ask("example", "--export", path).stdout
    study = read_study(path)
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


def test_an_export_that_cannot_be_written_is_named(ask, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StorageError, match=r"--export: needs a file that can be written, got .*file/best.yaml"
    ):
        ask("example", "--export", tmp_path / "file" / "best.yaml")


def test_a_study_without_a_completed_trial_says_so(invoke, example_log):
    example_log.trial("a", event="failed")
    with pytest.raises(
        ConfigError,
        match=(
            r"example has no completed trial with a value for AP \(1 failed\)\. Run the study"
            r" first"
        ),
    ):
        invoke(command, "example", "--storage", example_log.storage.root)
