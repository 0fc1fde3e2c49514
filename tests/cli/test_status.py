import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest

from kdr.cli import status
from kdr.errors import ConfigError
from kdr.results.schema import Event
from tests.cli.conftest import Ask, Invoke
from tests.conftest import ExampleLog


@pytest.fixture
def ask(invoke: Invoke, example_log: ExampleLog) -> Ask:
    example_log.time = datetime.now(UTC) - timedelta(seconds=40)
    return lambda *arguments: invoke(
        status.command, *arguments, "--storage", example_log.storage.root
    )


def test_states_progress_and_eta_are_shown(ask: Ask, example_log: ExampleLog) -> None:
    example_log.trial("teacher", role="teacher", AP=0.5)
    example_log.trial("a", AP=0.25)
    example_log.trial("b", AP=0.2, event="started", epoch=2)
    example_log.trial("c", event="failed", epoch=0, AP=None, reason="out of memory\nTraceback")
    lines = ask("example").stdout.splitlines()
    assert lines[0].startswith("example: 3 of 8 trials (1 completed, 1 running, 1 failed); about ")
    assert [line.split()[:4] for line in lines[2:5]] == [
        ["teacher", "completed", "4/4", "0.5"],
        ["a", "completed", "4/4", "0.25"],
        ["b", "running", "2/4", "0.2"],
    ]
    assert lines[5].endswith(" ago  out of memory")


def test_gpu_hours_are_shown_with_their_budget(ask: Ask, example_log: ExampleLog) -> None:
    example_log.content["search"] |= {"trials": None, "gpu_hours": 10}
    example_log.trial("a", event="started", num_gpus=720.0)  # for four epochs of a second each
    assert ask("example").stdout.splitlines()[0].endswith("; 0.8 of 10 GPU-hours used")


def test_arms_are_shown_with_their_completed_seeds(ask: Ask, example_log: ExampleLog) -> None:
    del example_log.content["search"]
    example_log.content["trial"]["distill"] = {}
    example_log.content["ablation"] = {
        "factors": {"lr": {"low": {"training.lr": 0.001}}},
        "seeds": [5, 6],
        "metric": "AP",
    }
    for seed in (5, 6):
        arms: dict[str, Event] = {
            "baseline": "completed",
            "lr=low": "failed" if seed == 6 else "completed",
        }
        for arm, event in arms.items():
            changes = {"seed": seed, "training.lr": 0.01 if arm == "baseline" else 0.001}
            example_log.trial(
                f"{arm}-{seed}",
                arm=arm,
                parameters=changes,
                event=event,
                levels={"lr": arm.rpartition("=")[2]},
            )
    lines = ask("example").stdout.splitlines()
    assert lines[0].startswith("example: 4 of 4 trials (3 completed, 1 failed)")
    assert [line.split() for line in lines[1:4]] == [
        ["arm", "seeds", "done"],
        ["baseline", "2", "of", "2"],
        ["lr=low", "1", "of", "2", "1", "failed"],
    ]
    assert lines[6].startswith("baseline, seed 5  completed")


def test_json_has_counts_trials_and_eta(ask: Ask, example_log: ExampleLog) -> None:
    example_log.trial("a", AP=0.25)
    found = json.loads(ask("example", "--json").stdout)
    assert (found["counts"], found["total"], found["is_over"]) == ({"completed": 1}, 8, False)
    assert (
        found["trials"][0]["key"],
        found["trials"][0]["epoch"],
        found["trials"][0]["value"],
    ) == ("a", 4, 0.25)
    assert found["seconds_left"] == pytest.approx(7 * 4 * 11)


def test_watching_ends_with_the_study_and_prints_only_changes(
    ask: Ask, example_log: ExampleLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "WATCH_EVERY_S", 0.02)
    example_log.content["search"]["trials"] = 2
    example_log.trial("a")
    finish = threading.Timer(0.5, example_log.trial, args=["b"])
    finish.start()
    blocks = [block for block in ask("example", "--watch").stdout.split("\n\n") if block.strip()]
    finish.join()
    assert blocks[0].startswith("example: 1 of 2 trials (1 completed)")
    assert blocks[-1].startswith("example: 2 of 2 trials (2 completed)\n")
    assert len(blocks) < 10


def test_an_unknown_study_is_an_error(ask: Ask) -> None:
    with pytest.raises(
        ConfigError, match=r"study nothing is not in the log .* \(studies there: none yet\)"
    ):
        ask("nothing")


def test_help_needs_no_heavy_package() -> None:
    code = (
        "import sys, kdr.cli.query, kdr.cli.table, kdr.cli.status, kdr.cli.best\nprint([name for "
        "name in ('pyarrow', 'duckdb', 'torch', 'ray', 'pydantic') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_reading_a_study_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys, kdr.results.sql, kdr.results.compact, kdr.results.writer\n"
        "import kdr.report.followup.best_study, kdr.report.progress, kdr.report.settings_table\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
