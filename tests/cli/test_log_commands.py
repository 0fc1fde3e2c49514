"""`log check`, `log compact`, `log exclude` and `log cancel`: output and effects."""

import json
from pathlib import Path

import pytest

from kdr.cli import log_cancel, log_check, log_compact, log_exclude
from kdr.errors import ConfigError
from kdr.results.reader import read_log
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    return lambda module, *arguments: invoke(
        module.command, *arguments, "--storage", example_log.storage.root
    )


def test_check_exits_with_0_for_a_sound_log_and_1_for_a_damaged_one(
    ask: Ask, example_log: ExampleLog
) -> None:
    example_log.trial("a")
    assert ask(log_check).exit_code == 0
    torn = next(Path(str(example_log.storage.log)).glob("epochs/study=example/part-*"))
    torn.write_bytes(b"PAR1")
    result = ask(log_check, "--quarantine")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"damaged: {torn}: ")
    assert f"moved: {example_log.storage.quarantine}" in result.stdout
    assert result.stdout.endswith(" files of the log, 1 problem\n")
    result = ask(log_check, "--json")
    [gap] = json.loads(result.stdout)["findings"]
    assert (result.exit_code, gap["kind"], gap["where"]) == (0, "incomplete", "a")
    assert gap["what"].startswith(
        "was completed at epoch 4, but the log has 0 epochs: its result counts, its curve has"
    )


def test_compact_reports_the_number_of_files_before_and_after(
    ask: Ask, example_log: ExampleLog
) -> None:
    for key in "abc":
        example_log.trial(key)
    num_rows = read_log(example_log.storage).trials.num_rows
    before = len(list(Path(str(example_log.storage.log)).glob("*/study=example/part-*")))
    assert ask(log_compact).stdout == f"example: {before} files merged into 3\n"
    assert ask(log_compact, "example").stdout == "example: 3 files merged into 3\n"
    assert read_log(example_log.storage).trials.num_rows == num_rows
    with pytest.raises(
        ConfigError, match=r"study nothing is not in the log .* \(studies there: example\)"
    ):
        ask(log_compact, "nothing")


def test_exclude_accepts_the_start_of_a_key_and_can_be_undone(
    ask: Ask, example_log: ExampleLog
) -> None:
    example_log.trial("abcdef123", AP=0.5)
    assert "`kdr run` trains it again" in ask(log_exclude, "abcdef", "--reason", "broken").stdout
    assert read_log(example_log.storage).states()["abcdef123"].state == "excluded"
    assert "counts again" in ask(log_exclude, "abcdef", "--undo").stdout
    assert read_log(example_log.storage).states()["abcdef123"].state == "completed"


@pytest.mark.parametrize("options", [(), ("--undo", "--reason", "x")])
def test_exclude_needs_a_reason_or_undo(
    ask: Ask, example_log: ExampleLog, options: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError, match="needs either --reason or --undo"):
        ask(log_exclude, "abcdef123", *options)
    example_log.trial("abcdef123")
    with pytest.raises(ConfigError, match="must say why"):
        ask(log_exclude, "abcdef123", "--reason", " ")


def test_cancel_requests_the_end_of_a_running_trial(ask: Ask, example_log: ExampleLog) -> None:
    example_log.trial("abcdef123", event="started", epoch=2)
    assert (
        "will end after its current epoch (2 finished)"
        in ask(log_cancel, "abcdef", "--reason", "slow").stdout
    )
    assert example_log.storage.cancellation("abcdef123").read_text() == "slow"


def test_cancel_refuses_a_trial_that_is_not_running(ask: Ask, example_log: ExampleLog) -> None:
    example_log.trial("abcdef123")
    with pytest.raises(
        ConfigError, match="KEY: must be a running trial, got abcdef123, which is completed"
    ):
        ask(log_cancel, "abcdef123")
