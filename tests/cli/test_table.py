import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from kdr.cli.table import command, print_ranking
from kdr.config.study import study_from
from kdr.errors import ConfigError
from tests.cli.conftest import Ask, Invoke, text_of
from tests.conftest import ExampleLog

WEIGHT = "distill.kdr.weight"


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    for key, weight, AP in (("a", 1.0, 0.1), ("b", 1.0, 0.3), ("c", 5.0, 0.4)):
        example_log.trial(key, parameters={WEIGHT: weight}, AP=AP)
    example_log.trial("d", parameters={WEIGHT: 5.0}, event="stopped_early", epoch=1)
    return lambda *arguments: invoke(command, *arguments, "--storage", example_log.storage.root)


def test_a_metric_by_a_setting(ask: Ask) -> None:
    lines = ask("example", "--by", WEIGHT).stdout.splitlines()
    assert lines[0] == f"example: AP by {WEIGHT}"
    assert [line.split() for line in lines[1:4]] == [
        ["weight", "n", "mean", "AP", "sd", "min", "max"],
        ["5", "1", "0.4", "0.4", "0.4"],
        ["1", "2", "0.2", "0.1414", "0.1", "0.3"],
    ]
    assert lines[4] == "Not in the table: 1 stopped early."
    assert "come from a search (tpe)" in lines[5]


def test_json_has_rows_and_notes(ask: Ask) -> None:
    found = json.loads(ask("example", "--by", WEIGHT, "--format", "json").stdout)
    assert found["rows"][0] == {
        WEIGHT: 5.0,
        "n": 1,
        "mean AP": 0.4,
        "sd": None,
        "min": 0.4,
        "max": 0.4,
    }
    assert found["notes"][0] == "Not in the table: 1 stopped early."


def test_without_by_the_trials_are_ranked(ask: Ask) -> None:
    lines = ask("example").stdout.splitlines()
    assert lines[0] == "example: trials by AP at their last epoch (3 completed, 1 stopped early)"
    assert [line.split()[:3] for line in lines[2:]] == [
        ["1", "c", "completed"],
        ["2", "b", "completed"],
        ["3", "a", "completed"],
        ["d", "stopped_early", "0.2"],
    ]


def test_a_study_file_names_its_study(ask: Ask, example_log: ExampleLog, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(example_log.content))
    assert ask(path).stdout == ask("example").stdout


def test_an_unknown_study_is_answered_with_the_known_ones(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"study exmple is not in the log of .*runs \(studies there: example\)\. ",
    ):
        ask("exmple")
    with pytest.raises(ConfigError, match=r"no.yaml: cannot be read"):
        ask(tmp_path / "no.yaml")
    nameless = tmp_path / "nameless.yaml"
    nameless.write_text("trial: {}")
    with pytest.raises(
        ConfigError, match=r"nameless.yaml: study: must be the name of the study, got None"
    ):
        ask(nameless)


def test_run_prints_the_same_ranking(ask: Ask, example_log: ExampleLog) -> None:
    console = Console(file=io.StringIO(), width=200)
    print_ranking(
        console, example_log.storage, study_from(example_log.content, folder=Path("/")), "AP"
    )
    assert text_of(console) == ask("example").stdout
