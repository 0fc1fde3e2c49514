"""`table` and `verify` on ablations, from the command line."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from kdr.cli import verify
from kdr.cli.table import command, print_ranking
from kdr.config.study import study_from
from kdr.errors import ConfigError, StorageError
from tests.cli.conftest import Ask, Invoke, text_of
from tests.conftest import AblationLog

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]


@pytest.fixture
def ask(invoke: Invoke, ablation_log: AblationLog) -> Ask:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    return lambda *arguments, of=command: invoke(
        of, *arguments, "--storage", ablation_log.storage.root
    )


def test_an_ablation_is_shown_by_arms(ask: Ask) -> None:
    lines = ask("ablate").stdout.splitlines()
    assert lines[0] == "ablate: AP (%) by arm, with the difference from baseline"
    assert lines[1].split() == [
        "arm",
        "n",
        "AP",
        "(%)",
        "difference",
        "95",
        "%",
        "interval",
        "p",
        "sign-flip",
        "p",
        "result",
    ]
    assert lines[3].split() == [
        "better",
        "5/5",
        "32.6",
        "±",
        "1.1",
        "+2.00",
        "[1.80,",
        "2.20]",
        "<0.001",
        "0.062",
        "helps",
    ]
    assert lines[4].startswith("AP in percent, as in papers")


def test_run_ends_with_the_same_table(ask: Ask, ablation_log: AblationLog) -> None:
    console = Console(file=io.StringIO(), width=300)
    print_ranking(
        console, ablation_log.storage, study_from(ablation_log.content(), folder=Path("/")), "AP"
    )
    assert text_of(console).split() == ask("ablate").stdout.split()


def test_metrics_are_columns(ask: Ask) -> None:
    head = ask(
        "ablate", "--metric", "AP", "--metric", "AP50", "--metric", "s/epoch"
    ).stdout.splitlines()[1]
    assert head.split()[-5:] == ["AP50", "(%)", "AP50", "difference", "s/epoch"]


@pytest.mark.parametrize("ending", ["md", "tex", "csv", "json", "html"])
def test_verify_finds_an_edited_cell_of_a_written_table(
    ask: Ask, tmp_path: Path, ending: str
) -> None:
    path = tmp_path / f"table.{ending}"
    assert f"verify {path}" in ask("ablate", "--output", path).stdout
    ended = ask(path, of=verify.command)
    assert (
        ended.exit_code,
        ended.stdout.rstrip().endswith("recomputed from the log of ablate, no differences"),
    ) == (0, True)
    path.write_text(path.read_text().replace("32.6", "33.6", 1))
    ended = ask(path, of=verify.command)
    assert ended.exit_code == 1
    assert "better, AP (%)" in ended.stdout
    assert ended.stdout.rstrip().endswith("1 difference")
    assert "written 33.6" in ended.stdout
    assert "recomputed 32.6" in ended.stdout


def test_verify_prints_json(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    ask("ablate", "--output", path)
    path.write_text(path.read_text().replace("+2.00", "+4.00"))
    content = json.loads(ask(path, "--json", of=verify.command).stdout)
    assert content["study"] == "ablate"
    assert content["differences"] == [
        {"row": "better", "column": "difference", "written": "+4.00", "recomputed": "+2.00"}
    ]


@pytest.mark.parametrize("format", ["md", "latex", "csv", "json", "html"])
def test_a_printed_table_equals_the_written_one(ask: Ask, tmp_path: Path, format: str) -> None:
    path = tmp_path / "table"
    ask("ablate", "--format", format, "--output", path)
    assert ask("ablate", "--format", format).stdout == path.read_text()


def test_cell_lists_the_trials_behind_a_number(ask: Ask) -> None:
    lines = ask("ablate", "--cell", "better", "AP").stdout.splitlines()
    assert lines[0] == "ablate: AP (%) of better"
    assert lines[2].split()[:5] == ["0", "32.1", "completed", "4", "better-0"]
    assert lines[2].count(".parquet") == 2
    content = json.loads(ask("ablate", "--cell", "better", "AP", "--format", "json").stdout)
    assert [row["key"] for row in content["rows"]] == [f"better-{seed}" for seed in range(5)]


def test_two_studies_are_compared(ask: Ask, ablation_log: AblationLog) -> None:
    other = dataclasses.replace(ablation_log, study="older", prefix="older-")
    other.arm("baseline", BASE[::-1])
    lines = ask("ablate", "--compare", "older").stdout.splitlines()
    assert (
        lines[0]
        == "ablate against older: AP (%) by arm, with the difference from the same arm of older"
    )
    assert [line.split()[:2] for line in lines[2:4]] == [
        ["older:", "baseline"],
        ["ablate:", "baseline"],
    ]


def test_a_pivot_and_a_table_by_settings_are_written_for_a_paper(ask: Ask) -> None:
    lines = ask(
        "ablate", "--pivot", "distill.kdr.weight", "seed", "--format", "md"
    ).stdout.splitlines()
    [row] = [line for line in lines if line.startswith("| 3")]
    assert row.startswith("| 3 | 31.1 ± 1.5 (n=2) | 32.0 ± 1.4 (n=2) |")
    assert r"\begin{tabular}" in ask("ablate", "--by", "seed", "--format", "latex").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--by", "seed", "--cell", "better", "AP"),
            "table: needs at most one of --by, --pivot, .* got --by and --cell",
        ),
        (
            ("--by", "seed", "--allow-unequal"),
            "--allow-unequal: must be used with arms of an ablation",
        ),
        (
            ("--output", "table.docx"),
            r"--output: must end in .md, .tex, .csv, .json, .html, got table.docx",
        ),
        (
            ("--cell", "best", "AP"),
            "ablate has no arm 'best'. Arms: baseline, better",
        ),
        (
            ("--cell", "better", "AP", "--format", "md"),
            "--format: must be table, csv or json here, got md",
        ),
        (("--compare", "unknown"), "study unknown is not in the log"),
    ],
)
def test_impossible_tables_are_refused(ask: Ask, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ask("ablate", *arguments)


def test_verify_refuses_files_that_are_not_written_tables(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"TABLE: cannot read .*none.tex"):
        ask(tmp_path / "none.tex", of=verify.command)
    (tmp_path / "paper.tex").write_text(r"\documentclass{article}")
    with pytest.raises(ConfigError, match="TABLE: must be a file from `kdr table --output`"):
        ask(tmp_path / "paper.tex", of=verify.command)
