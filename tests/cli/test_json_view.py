"""`run --json`: what happens in a run as JSON lines, and nothing else on standard output."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import kdr
from kdr.cli import run
from kdr.cli.json_view import JsonView, key_facts
from kdr.config.study import read_study
from kdr.run.observer import Observer, TrialUpdate
from kdr.run.study_run import Outcome
from kdr.training.findings import Finding
from tests.cli.conftest import Invoke

STARTERS = Path(kdr.__file__).parent / "starters"


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def view() -> JsonView:
    return JsonView(io.StringIO(), metric="AP50")


def printed(view: JsonView) -> list[dict[str, Any]]:
    assert isinstance(view._out, io.StringIO)
    return lines_of(view._out.getvalue())


def update(state: str, epoch: int, *, key: str = "k1", **fields: Any) -> TrialUpdate:
    return TrialUpdate(name="1", key=key, state=state, epoch=epoch, epochs=4, **fields)


def changes(view: JsonView) -> list[tuple[str, str, int]]:
    return [(line["change"], line["state"], line["epoch"]) for line in printed(view)]


def test_a_trial_starts_reports_epochs_and_ends(view: JsonView) -> None:
    for state, epoch in [
        ("running", 0),
        ("running", 0),
        ("running", 1),
        ("running", 2),
        ("stopped_early", 2),
        ("stopped_early", 2),
    ]:
        view.update(update(state, epoch))
    assert changes(view) == [
        ("started", "running", 0),
        ("epoch", "running", 1),
        ("epoch", "running", 2),
        ("ended", "stopped_early", 2),
    ]


def test_a_trial_event_has_all_fields(view: JsonView) -> None:
    view.update(update("running", 0, parameters={"distill.kdr.weight": 3.0}))
    view.update(update("failed", 1, value=float("nan"), reason="the loss is NaN"))
    started, ended = printed(view)
    assert started == {
        "event": "trial",
        "time": started["time"],
        "seconds": started["seconds"],
        "change": "started",
        "state": "running",
        "key": "k1",
        "name": "1",
        "epoch": 0,
        "epochs": 4,
        "metric": "AP50",
        "value": None,
        "parameters": {"distill.kdr.weight": 3.0},
        "reason": "",
    }
    assert (ended["value"], ended["reason"]) == (None, "the loss is NaN")


def test_a_trial_that_ended_before_this_run_is_known(view: JsonView) -> None:
    view.update(update("completed", 4))
    assert changes(view) == [("known", "completed", 4)]


def test_a_trial_whose_process_died_is_restarted(view: JsonView) -> None:
    view.update(update("running", 0))
    view.update(update("running", 2))
    view.update(update("running", 2, reason="its process died"))
    view.update(update("running", 1))
    assert [change for change, *_ in changes(view)] == ["started", "epoch", "restarted", "epoch"]


def test_an_interrupted_trial_may_start_again(view: JsonView) -> None:
    for state in ("running", "interrupted", "running", "completed"):
        view.update(update(state, 1))
    assert [change for change, *_ in changes(view)] == ["started", "ended", "started", "ended"]


def test_phases_findings_and_the_plan_are_events(view: JsonView) -> None:
    view.phase("Starting Ray")
    view.finding(Finding("losses", "warning", "large", "lower the weight"))
    view.plan(None, 3, 2)
    phase, finding, plan = printed(view)
    assert (phase["event"], phase["text"]) == ("phase", "Starting Ray")
    assert (finding["event"], finding["state"]) == ("finding", "warning")
    assert (finding["name"], finding["text"]) == ("losses", "large")
    assert finding["fix"] == "lower the weight"
    assert (plan["event"], plan["num_trials"]) == ("plan", None)
    assert (plan["num_done"], plan["num_concurrent"]) == (3, 2)


@pytest.mark.parametrize(
    ("outcome", "expected", "code"),
    [
        (Outcome(2, 0, False, 1.0), "completed", 0),
        (Outcome(2, 1, False, 1.0), "failed", 1),
        (Outcome(2, 2, False, 1.0, abort_reason="all failed"), "aborted", 1),
        (Outcome(1, 0, True, 1.0), "interrupted", 130),
        (Outcome(1, 1, True, 1.0), "interrupted", 130),
        (Outcome(1, 0, True, 1.0, terminated=True), "terminated", 143),
    ],
)
def test_the_end_has_the_outcome_and_the_exit_code(
    view: JsonView, outcome: Outcome, expected: str, code: int
) -> None:
    assert run.exit_code(outcome) == code
    view.done(outcome, counts={"completed": 1, "failed": 1}, exit_code=code)
    done = printed(view)[-1]
    assert (done["event"], done["outcome"], done["exit_code"]) == ("done", expected, code)
    assert done["counts"] == {"completed": 1, "failed": 1}
    assert (done["num_run"], done["num_failed"]) == (outcome.num_run, outcome.num_failed)
    assert done["reason"] == outcome.abort_reason
    assert done["seconds"] >= 0


@pytest.mark.parametrize(
    ("name", "kind", "seeds"),
    [("quickstart", "search", [0]), ("ablation", "ablation", [1, 2, 3])],
)
def test_the_launch_says_what_the_study_is_about(name: str, kind: str, seeds: list[int]) -> None:
    facts = key_facts(read_study(STARTERS / f"{name}.yaml"))
    assert (facts["kind"], facts["seeds"], facts["metric"]) == (kind, seeds, "AP")
    assert facts["student"] == "fcos mobilenet_v3_small"
    assert (facts["data"], facts["epochs"]) == ("shapes", 4)


@pytest.fixture
def run_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the run of a study by its events, between much noise on standard output."""

    def run_study(*_: object, observer: Observer, **__: object) -> Outcome:
        print("noise of Python")
        observer.phase("Running trials")
        observer.update(update("running", 0))
        observer.update(update("completed", 4, value=0.5))
        return Outcome(1, 1, False, 2.0)

    monkeypatch.setattr("kdr.run.study_run.run_study", run_study)


def test_standard_output_has_json_lines_only(
    invoke: Invoke, run_without_ray: None, tmp_path: Path
) -> None:
    arguments = (STARTERS / "ablation.yaml", "--storage", tmp_path, "--json")
    result = invoke(run.command, *arguments)
    launch, *others, done = lines_of(result.stdout)
    assert launch["event"] == "launch"
    assert (launch["study"], launch["num_trials"]) == ("ablation", 18)
    assert launch["storage"] == str(tmp_path)
    assert launch["log"] == str(tmp_path / "log" / "v1")
    assert (launch["version"], launch["pid"]) == (kdr.__version__, os.getpid())
    assert [line["event"] for line in others] == ["phase", "trial", "trial"]
    assert (done["event"], done["exit_code"], result.exit_code) == ("done", 1, 1)
    assert result.stderr == "noise of Python\n"


OUTPUT = """
import os, subprocess, sys
from kdr.cli.json_view import JsonView, json_output
with json_output() as out:
    view = JsonView(out, metric="AP")
    view.phase("first")
    print("printed")
    os.write(1, b"written\\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"])
    sys.stdin.readline()
    view.phase("second")
    view.phase("third")
print("after")
print("the end", file=sys.stderr)
"""


def test_output_of_libraries_and_children_goes_to_standard_error() -> None:
    command = [sys.executable, "-c", OUTPUT]
    result = subprocess.run(command, capture_output=True, text=True, input="\n", check=True)
    *lines, after = result.stdout.splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["first", "second", "third"]
    assert after == "after"
    assert result.stderr.splitlines() == ["printed", "written", "by a child", "the end"]


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    command, pipe = [sys.executable, "-c", OUTPUT], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["text"] == "first"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stderr.read().splitlines()[-1] == "the end"
        assert process.wait(30) == 0
