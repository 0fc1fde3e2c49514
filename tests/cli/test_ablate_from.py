from pathlib import Path

import pytest

from kdr.cli import ablate_from, best
from kdr.config.study import read_study
from kdr.errors import ConfigError, StorageError
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    example_log.trial("abcdef-1", parameters={"distill.kdr.weight": 1.0}, AP=0.1)
    example_log.trial("abcxyz-2", parameters={"distill.kdr.weight": 5.0}, AP=0.4)
    return lambda *arguments: invoke(
        ablate_from.command, *arguments, "--storage", example_log.storage.root
    )


def test_the_study_is_printed_or_written(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "ablation.yaml"
    path.write_text(ask("abcxyz", "--seeds", "3").stdout)
    printed = read_study(path)
    assert (
        f"See what it would run: kdr plan {path}"
        in ask("abcxyz", "--seeds", "3", "--export", path).stdout
    )
    assert read_study(path) == printed
    assert printed.ablation is not None
    assert printed.ablation.factors["weight"] == {"default": {"distill.kdr.weight": 3.0}}


def test_the_exported_best_trial_can_be_ablated(
    ask: Ask, invoke: Invoke, example_log: ExampleLog, tmp_path: Path
) -> None:
    path = tmp_path / "best.yaml"
    invoke(best.command, "example", "--export", path, "--storage", example_log.storage.root)
    (tmp_path / "ablation.yaml").write_text(ask(path).stdout)
    study = read_study(tmp_path / "ablation.yaml")
    assert study.ablation is not None
    assert study.ablation.all_seeds == tuple(range(100, 108))


def test_a_missing_trial_or_unwritable_file_is_named(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KEY: must be the key of a trial in the log"):
        ask("nothing")
    with pytest.raises(ConfigError, match=r"missing\.yaml: cannot be read"):
        ask(tmp_path / "missing.yaml")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"--export: cannot write .*file/a.yaml"):
        ask("abcxyz", "--export", tmp_path / "file" / "a.yaml")
