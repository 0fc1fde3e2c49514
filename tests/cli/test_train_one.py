"""`train` trains one trial in the foreground, once, and logs it."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import Result

from kdr.cli import train_one
from kdr.errors import BusyError, ConfigError, StorageError
from kdr.report.ranking import ranking
from kdr.results.reader import read_log
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from tests.cli.conftest import Invoke, Trained, text_of

pytestmark = pytest.mark.slow


def test_the_teacher_is_trained_first_and_every_epoch_is_printed(trained: Trained) -> None:
    lines = trained.result.stdout.splitlines()
    assert lines[0].startswith("training: train.json: 16 images, ")
    assert lines[1].startswith("evaluation: val.json: 6 images, ")
    assert [line.split("  ")[0] for line in lines[2:-1]] == ["epoch 1/2", "epoch 2/2"]
    for name in ("AP ", "AP50 ", "classification ", "kdr.foreground ", " images/s"):
        assert name in lines[3]
    assert lines[-1] == f"Weights: {trained.weights}. Log: {trained.storage.log}"
    states = list(read_log(trained.storage).states().values())
    assert {(state.role, state.state, state.epoch) for state in states} == {
        ("teacher", "completed", 1),
        ("student", "completed", 2),
    }


def test_the_trial_is_in_the_ranking_of_its_study(trained: Trained) -> None:
    [trial] = ranking(read_log(trained.storage), "tiny")
    assert (trial.rank, trial.name, trial.key) == (1, "trial-0001", trained.key)


def test_a_completed_trial_is_not_trained_again(trained: Trained, invoke: Invoke) -> None:
    before = read_log(trained.storage)
    text = invoke(train_one.command, trained.study, "--storage", trained.storage.root).stdout
    assert text.splitlines()[-1].startswith("Already trained: AP ")
    assert f"trial {trained.key}. Train it again with --rerun" in text
    after = read_log(trained.storage)
    assert (after.trials.num_rows, after.arms.num_rows) == (
        before.trials.num_rows,
        before.arms.num_rows,
    )


def test_a_rerun_trains_again_to_the_same_numbers(trained: Trained, invoke: Invoke) -> None:
    before = read_log(trained.storage).epochs_of(trained.key).to_pylist()
    result: Result = invoke(
        train_one.command,
        trained.study,
        "--storage",
        trained.storage.root,
        "--rerun",
        "--device",
        "cpu",
    )
    assert result.stdout.count("epoch ") == 2
    log = read_log(trained.storage)
    assert log.states()[trained.key].attempt == before[0]["attempt"] + 1
    after = log.epochs_of(trained.key).to_pylist()
    assert [(row["losses"], row["AP"]) for row in after] == [
        (row["losses"], row["AP"]) for row in before
    ]


def test_another_study_of_the_same_trial_uses_its_result(trained: Trained, invoke: Invoke) -> None:
    content = json.loads(trained.study.read_text()) | {"study": "twin"}
    twin = trained.study.with_name("twin.yaml")
    twin.write_text(json.dumps(content))
    assert (
        "Already trained"
        in invoke(train_one.command, twin, "--storage", trained.storage.root).stdout
    )
    assert [trial.key for trial in ranking(read_log(trained.storage), "twin")] == [trained.key]


def test_a_trial_that_runs_out_of_memory_reports_it_and_continues(
    trained: Trained,
    invoke: Invoke,
    tmp_path: Path,
    room_for_two: None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    changes = (
        "--set",
        "training.micro_batch=auto",
        "--set",
        "distill={}",
        "--set",
        "teacher=null",
    )
    text = invoke(train_one.command, trained.study, "--storage", tmp_path / "runs", *changes).stdout
    assert [line.split("  ")[0] for line in text.splitlines()[2:-1]] == ["epoch 1/2", "epoch 2/2"]
    messages = [record.message.partition(": ")[2] for record in caplog.records]
    sizes = [re.findall(r"\d+", message) for message in messages if "out of memory" in message]
    assert sizes == [["8", "4"], ["4", "2"]]


def test_a_trial_of_another_process_is_refused(trained: Trained, invoke: Invoke) -> None:
    before = read_log(trained.storage)
    again = (train_one.command, trained.study, "--storage", trained.storage.root, "--rerun")
    with (
        sole_driver(trained.storage, "tiny", on_waiting=pytest.fail),
        pytest.raises(
            BusyError,
            match=r"study tiny is already running \(process ",
        ),
    ):
        invoke(*again)
    refusal = r"already being trained by study other \(process "
    other = sole_driver(trained.storage, "other", on_waiting=pytest.fail)
    with other as driver, TrialClaims(trained.storage, "other", driver) as claims:
        claims.take([trained.key])
        with pytest.raises(BusyError, match=refusal):
            invoke(*again)
    assert read_log(trained.storage).trials.num_rows == before.trials.num_rows


def test_problems_are_reported_before_anything_is_written(
    trained: Trained, invoke: Invoke, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"trial\.training\.epochs: .* got 0"):
        invoke(
            train_one.command,
            trained.study,
            "--storage",
            tmp_path / "runs",
            "--set",
            "training.epochs=0",
        )
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"--storage: must be a writable folder"):
        invoke(train_one.command, trained.study, "--storage", tmp_path / "file")


def test_bars_are_drawn_on_a_terminal_only() -> None:
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=is_terminal, width=80)
        batches: list[Any] = [1, 2, 3]
        assert [*train_one.progress_bars(console)(batches, 3, "training 1/2")] == batches
        assert ("training 1/2" in text_of(console)) == is_terminal
