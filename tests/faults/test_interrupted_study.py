"""A study that is cut off, in every way that happens: Ctrl-C, SIGTERM, a killed driver or trial.
The same command goes on."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import kdr
from kdr.config.study import read_study
from kdr.results.exclusion import exclude
from kdr.results.reader import Log, TrialState, read_log
from kdr.run.attempt.cancellation import ask_to_end
from kdr.run.attempt.logged_fit import teacher_of
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from tests.faults.invariants import Results, check_log, results_of
from tests.faults.processes import AGENTS, Run, check_no_process_is_left

pytestmark = [pytest.mark.faults, pytest.mark.ray]

ORCHESTRATE = Path(kdr.__file__).parents[1] / "orchestrate.py"
EPOCHS, TRIALS = 5, 3
TRAINING = {"batch_size": 8, "optimizer": "adamw", "lr": 1e-3, "schedule": "constant"}
MOBILENET = {"backbone": "mobilenet_v3_small", "fpn_channels": 32}
STUDY: dict[str, Any] = {
    "study": "cut-off",
    "trial": {
        "data": {
            "dataset": "shapes",
            "image_size_px": 64,
            "num_train": 56,
            "num_val": 8,
            "search_split": 8,
        },
        "teacher": {**MOBILENET, "training": {**TRAINING, "epochs": 1}},
        "student": MOBILENET,
        "distill": {"kdr": {}},
        "training": {**TRAINING, "epochs": EPOCHS},
    },
    "search": {
        "trials": TRIALS,
        "parameters": {"distill.kdr.weight": {"float": [0.1, 50], "log": True}},
    },
    "resources": {"max_concurrent": 1},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Storage]:
    """The study, and a storage with its data and its trained teacher: what is interrupted here are
    the students."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("prepared")
    path, storage = folder / "study.yaml", Storage.at(folder / "runs")
    path.write_text(json.dumps(STUDY))  # JSON is YAML
    study = read_study(path)
    teacher = teacher_of(trial_maker(study, storage)(study.base))
    assert teacher is not None
    list(fit(teacher, storage=storage))
    return path, storage


@pytest.fixture(scope="module")
def undisturbed(
    prepared: tuple[Path, Storage], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    """What the study finds when nothing happens to it."""
    path, storage = prepared
    own = Storage.at(tmp_path_factory.mktemp("undisturbed") / "runs")
    shutil.copytree(storage.root, own.root)
    run = Run(path, own)
    try:
        assert run.ended() == 0, run.text()
    finally:
        run.close()
    results = results_of(own, "cut-off")
    assert [result[:2] for result in results.values()] == [("completed", EPOCHS)] * TRIALS
    check_log(own, "cut-off", results)
    return results


@pytest.fixture
def begin(prepared: tuple[Path, Storage], tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Begins the study, or goes on with it, in a storage of the test's own; nothing that it starts
    outlives the test."""
    path, storage = prepared
    shutil.copytree(storage.root, tmp_path / "runs")
    runs: list[Run] = []

    def start(*options: str) -> Run:
        runs.append(Run(path, Storage.at(tmp_path / "runs"), *options))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def students(log: Log) -> list[TrialState]:
    return [state for state in log.states_of("cut-off").values() if state.role == "student"]


def events(log: Log, key: str) -> list[tuple[int, str]]:
    rows = sorted(log.trials.to_pylist(), key=lambda row: row["time"])
    return [(row["attempt"], row["event"]) for row in rows if row["key"] == key]


def trial_is_under_way(number: int, storage: Storage) -> Callable[[], str | None]:
    """Its key, once the trial before it is completed and it has a checkpoint of at least two
    epochs."""

    def key() -> str | None:
        states = students(read_log(storage))
        checkpoints = [path.parent.name for path in storage.root.glob("trials/*/checkpoint.pt")]
        if len(states) < number or states[number - 2].state != "completed" or not checkpoints:
            return None
        saved = torch.load(storage.trial(checkpoints[0]) / "checkpoint.pt", weights_only=True)
        return checkpoints[0] if saved["progress"]["epoch"] >= 2 else None

    def seen() -> str | None:
        try:
            return key()
        except (FileNotFoundError, EOFError, RuntimeError):
            return None  # the trial has just ended

    return seen


def goes_on(begin: Callable[..., Run], undisturbed: Results) -> Log:
    """Gives the same command again, which ends the study as if nothing had happened."""
    run = begin()
    assert run.ended() == 0, run.text()
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=10)
    return check_log(run.storage, "cut-off", undisturbed)


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "Ctrl-C")
    first = begin()
    cut_off = first.wait_for("the second trial", trial_is_under_way(2, first.storage))
    os.killpg(first.driver.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    assert first.ended() == 130, first.text()
    assert "Interrupted: what was finished is kept. The same command continues." in first.text()
    assert "Traceback" not in first.text()
    check_no_process_is_left(first, within_s=10)
    log = check_log(first.storage, "cut-off")
    assert events(log, cut_off) == [(1, "started"), (1, "interrupted")]
    assert [state.state for state in students(log)] == ["completed", "interrupted"]

    log = goes_on(begin, undisturbed)
    assert events(log, cut_off) == [
        (1, "started"),
        (1, "interrupted"),
        (2, "resumed"),
        (2, "completed"),
    ]


@pytest.mark.parametrize("pause_s", [0.0, 0.3, 2.0])
def test_ctrl_c_twice_ends_at_once_and_the_same_command_goes_on(
    pause_s: float,
    begin: Callable[..., Run],
    undisturbed: Results,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", f"Ctrl-C twice, {pause_s} s apart")
    first = begin()
    first.wait_for("the second trial", trial_is_under_way(2, first.storage))
    os.killpg(first.driver.pid, signal.SIGINT)
    time.sleep(pause_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(first.driver.pid, signal.SIGINT)
    assert first.ended(timeout_s=20) == 130, first.text()
    assert "he same command continues." in first.text()
    assert "Traceback" not in first.text()
    check_no_process_is_left(first, within_s=10, but_for=AGENTS)
    check_log(first.storage, "cut-off")
    goes_on(begin, undisturbed)


def test_sigterm_lets_the_epoch_end_and_starts_nothing_new(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "SIGTERM to the process group")
    first = begin()
    cut_off = first.wait_for("the second trial", trial_is_under_way(2, first.storage))
    os.killpg(first.driver.pid, signal.SIGTERM)  # as `timeout` does
    assert first.ended(timeout_s=40) == 143, first.text()
    assert "Terminated: what was finished is kept. The same command continues." in first.text()
    assert "Traceback" not in first.text()
    check_no_process_is_left(first, within_s=10)
    log = check_log(first.storage, "cut-off")
    assert events(log, cut_off) == [(1, "started"), (1, "interrupted")]
    assert [state.state for state in students(log)] == ["completed", "interrupted"]
    reached = torch.load(first.storage.trial(cut_off) / "checkpoint.pt", weights_only=True)[
        "progress"
    ]["epoch"]
    assert reached >= log.states()[cut_off].epoch >= 2
    goes_on(begin, undisturbed)


def test_sigterm_to_ray_as_well_ends_at_once_and_nothing_finished_is_lost(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "SIGTERM to every process, Ray's too")
    run = begin()
    cut_off = run.wait_for("the second trial", trial_is_under_way(2, run.storage))
    for process in run.processes():  # as SLURM and systemd do
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    assert run.ended(timeout_s=30) == 143, run.text()
    assert (
        "Terminated, and Ray with it. What was finished is in the log; the same command continues."
        in run.text()
    )
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=20, but_for=AGENTS)
    log = check_log(run.storage, "cut-off")
    assert events(log, cut_off) == [(1, "started"), (1, "interrupted")]
    assert [state.state for state in students(log)] == ["completed", "interrupted"]
    goes_on(begin, undisturbed)


def test_a_used_up_budget_ends_the_search_and_a_larger_one_goes_on(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "budget of hours used up")
    first = begin("--set", "search.hours=0.0001")
    assert first.ended() == 0, first.text()
    check_no_process_is_left(first, within_s=10)
    log = check_log(first.storage, "cut-off")
    assert [state.state for state in students(log)] == ["completed"]
    goes_on(begin, undisturbed)


def test_damaged_files_are_moved_aside_and_their_trials_run_again(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "a truncated fragment, a torn checkpoint and a foreign file")
    first = begin()
    cut_off = first.wait_for("the second trial", trial_is_under_way(2, first.storage))
    first.driver.kill()
    check_no_process_is_left(first, within_s=20, but_for=AGENTS)
    log = first.storage.root / "log" / "v1"
    checkpoint = first.storage.trial(cut_off) / "checkpoint.pt"
    fragment = next(
        path
        for path in log.glob("trials/*/part-*.parquet")
        if "completed" in pq.read_table(path)["event"].to_pylist()
    )
    for path in (checkpoint, fragment):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (fragment.parent / "notes.parquet").write_text("not of this log")
    check = [
        sys.executable,
        ORCHESTRATE,
        "log",
        "check",
        "--quarantine",
        "--storage",
        first.storage.root,
    ]
    found = subprocess.run(check, capture_output=True, text=True)
    assert found.returncode == 1
    for path in (checkpoint, fragment):
        assert path.name in found.stdout
        assert not path.exists()
    assert subprocess.run(check, capture_output=True, text=True).returncode == 0
    goes_on(begin, undisturbed)


def test_whether_the_driver_is_killed_or_a_trial_no_trial_is_lost_or_doubled(
    begin: Callable[..., Run], undisturbed: Results, record_property: Callable[[str, object], None]
) -> None:
    record_property(
        "fault",
        "kill -9 of the driver, the same command at once, and kill -9 of a trial's process",
    )
    first = begin()
    second_trial = first.wait_for("the second trial", trial_is_under_way(2, first.storage))
    first.driver.kill()
    second = begin()  # at once: what is left of the first run must not disturb it
    check_no_process_is_left(first, within_s=20, but_for=AGENTS)
    third_trial = second.wait_for("the third trial", trial_is_under_way(3, first.storage))
    process = second.trial_process()
    assert process is not None
    os.kill(process, signal.SIGKILL)
    assert second.ended() == 0, second.text()
    assert re.search(
        r"3  epoch \d/5  running  AP \S+  its process died; it goes on from its checkpoint\n",
        second.text(),
    )
    assert "Traceback" not in second.text()
    assert f"{TRIALS - 1} trials run in" in second.text()
    log = check_log(first.storage, "cut-off", undisturbed)
    for killed in (second_trial, third_trial):
        assert events(log, killed) == [(1, "started"), (2, "resumed"), (2, "completed")]


def test_a_cancelled_trial_ends_alone_and_an_excluded_one_runs_again(
    begin: Callable[..., Run],
) -> None:
    run = begin()
    cancelled = run.wait_for("the second trial", trial_is_under_way(2, run.storage))
    ask_to_end(run.storage, cancelled, "it is slow")
    assert run.ended() == 0, run.text()
    assert re.search(r"2  epoch \d/5  cancelled  cancelled: it is slow\n", run.text())
    log = read_log(run.storage)
    assert events(log, cancelled) == [(1, "started"), (1, "cancelled")]
    assert [state.state for state in students(log)] == ["completed", "cancelled", "completed"]
    # a cancelled trial has ended and is not run again; an excluded one is, from its first epoch
    excluded = students(log)[0]
    exclude(run.storage, excluded, "a broken disk")
    again = begin()
    assert again.ended() == 0, again.text()
    assert "1 trials run in" in again.text()
    log = read_log(run.storage)
    assert [state.state for state in students(log)] == ["completed", "cancelled", "completed"]
    assert events(log, excluded.key)[-3:] == [(1, "excluded"), (2, "started"), (2, "completed")]
    assert log.epochs_of(excluded.key)["attempt"].to_pylist() == [2] * EPOCHS


def test_train_ends_after_its_epoch_at_sigterm(
    prepared: tuple[Path, Storage], tmp_path: Path
) -> None:
    path, storage = prepared
    shutil.copytree(storage.root, tmp_path / "runs")
    own = Storage.at(tmp_path / "runs")
    command = [
        sys.executable,
        ORCHESTRATE,
        "train",
        path,
        "--storage",
        own.root,
        "--set",
        "training.epochs=100",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1/100") for line in process.stdout)
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(60) == 143, rest
    assert "Terminated. What was finished is in the log; the same command continues." in rest
    log = read_log(own)
    [state] = students(log)
    assert (state.state, state.last.reason) == ("interrupted", "the command was interrupted")
    # one epoch where the signal came before the second had begun
    assert state.epoch == log.epochs_of(state.key).num_rows >= 1
    assert (
        torch.load(own.trial(state.key) / "checkpoint.pt", weights_only=True)["progress"]["epoch"]
        == state.epoch
    )
