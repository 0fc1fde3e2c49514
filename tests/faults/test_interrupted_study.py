"""Interrupted studies: Ctrl-C, SIGTERM, a killed driver or trial. The same command resumes them."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from kdr.config.study import read_study
from kdr.results.exclusion import exclude
from kdr.results.reader import Log, TrialState, read_log
from kdr.run.attempt.cancellation import request_cancel
from kdr.run.attempt.logged_fit import teacher_of
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from tests.faults.invariants import Results, check_log, results_of
from tests.faults.processes import AGENTS, Run, check_no_process_is_left, orchestrate

pytestmark = [pytest.mark.faults, pytest.mark.ray]

EPOCHS, TRIALS = 5, 13
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
    """The study, and a storage with its data and its trained teacher, so that students are
    interrupted and not the teacher."""
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
    """The study's results without interruption."""
    path, storage = prepared
    own = Storage.at(tmp_path_factory.mktemp("undisturbed") / "runs")
    shutil.copytree(storage.local, own.local)
    run = Run(path, own)
    try:
        assert run.ended() == 0, run.text()
    finally:
        run.close()
    results = results_of(own, "cut-off")
    assert [result[:2] for result in results.values()] == [("completed", EPOCHS)] * TRIALS
    check_log(own, "cut-off", results)
    return results


@pytest.fixture(scope="module")
def interrupted(
    prepared: tuple[Path, Storage], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Run]]:
    """Starts or resumes the one study that all interruptions here hit in turn: each test resumes
    after the last one's fault, which takes half as many runs as a study and its end for each.
    """
    yield from runs_of(prepared, tmp_path_factory.mktemp("interrupted"))


@pytest.fixture
def begin(prepared: tuple[Path, Storage], tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Starts or resumes the study in the test's own storage."""
    yield from runs_of(prepared, tmp_path)


def runs_of(prepared: tuple[Path, Storage], folder: Path) -> Iterator[Callable[..., Run]]:
    """Yields a function that runs the study's command; ends all of its processes afterwards."""
    path, storage = prepared
    shutil.copytree(storage.local, folder / "runs")
    runs: list[Run] = []

    def start(*options: str) -> Run:
        runs.append(Run(path, Storage.at(folder / "runs"), *options))
        return runs[-1]

    yield start
    for run in runs:
        run.close()


def students(log: Log) -> list[TrialState]:
    return [state for state in log.states_of("cut-off").values() if state.role == "student"]


def events(log: Log, key: str) -> list[tuple[int, str]]:
    rows = sorted(log.trials.to_pylist(), key=lambda row: row["time"])
    return [(row["attempt"], row["event"]) for row in rows if row["key"] == key]


def saved_epoch(storage: Storage, key: str) -> int:
    """The last epoch in a trial's checkpoint."""
    with (storage.trial(key) / "checkpoint.pt").fetched() as path:
        return int(torch.load(path, weights_only=True)["progress"]["epoch"])


def num_completed(storage: Storage) -> int:
    return sum(state.state == "completed" for state in students(read_log(storage)))


def next_trial(run: Run) -> str:
    """Waits until a trial is completed and the next one has a checkpoint of at least two epochs;
    returns the key of the latter."""
    before = num_completed(run.storage)

    def key() -> str | None:
        try:
            checkpoints = list(run.storage.local.glob("trials/*/checkpoint.pt"))
            if num_completed(run.storage) == before or not checkpoints:
                return None
            found = checkpoints[0].parent.name
            return found if saved_epoch(run.storage, found) >= 2 else None
        except (FileNotFoundError, EOFError, RuntimeError):
            return None  # the trial has just ended

    return run.wait_for("the next trial", key)


def check_interrupted(run: Run, cut_off: str) -> Log:
    """Asserts that the log of an interrupted study says so of one trial."""
    log = check_log(run.storage, "cut-off")
    assert events(log, cut_off) == [(1, "started"), (1, "interrupted")]
    *others, last = [state.state for state in students(log)]
    assert (set(others), last) == ({"completed"}, "interrupted")
    return log


def test_a_used_up_budget_ends_the_search_and_the_next_tests_continue_it(
    interrupted: Callable[..., Run], record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "budget of hours used up")
    run = interrupted("--set", "search.hours=0.0001")
    assert run.ended() == 0, run.text()
    check_no_process_is_left(run, within_s=10)
    log = check_log(run.storage, "cut-off")
    assert [state.state for state in students(log)] == ["completed"]


def test_ctrl_c_keeps_finished_work_and_the_same_command_resumes(
    interrupted: Callable[..., Run], record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "Ctrl-C")
    run = interrupted()
    cut_off = next_trial(run)
    os.killpg(run.driver.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    assert run.ended() == 130, run.text()
    assert "Interrupted. Finished work is in the log; the same command resumes." in run.text()
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=10)
    check_interrupted(run, cut_off)


@pytest.mark.parametrize("pause_s", [0.0, 0.3, 2.0])
def test_a_second_ctrl_c_ends_at_once(
    pause_s: float,
    interrupted: Callable[..., Run],
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", f"Ctrl-C twice, {pause_s} s apart")
    run = interrupted()
    next_trial(run)
    os.killpg(run.driver.pid, signal.SIGINT)
    time.sleep(pause_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.driver.pid, signal.SIGINT)
    assert run.ended(timeout_s=20) == 130, run.text()
    assert "he same command resumes." in run.text()
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=10, but_for=AGENTS)
    check_log(run.storage, "cut-off")


def test_sigterm_lets_the_epoch_finish_and_starts_nothing(
    interrupted: Callable[..., Run], record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "SIGTERM to the process group")
    run = interrupted()
    cut_off = next_trial(run)
    os.killpg(run.driver.pid, signal.SIGTERM)  # as `timeout` does
    assert run.ended(timeout_s=40) == 143, run.text()
    assert "Terminated. Finished work is in the log; the same command resumes." in run.text()
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=10)
    log = check_interrupted(run, cut_off)
    assert saved_epoch(run.storage, cut_off) >= log.states()[cut_off].epoch >= 2


def test_sigterm_to_ray_as_well_ends_at_once_and_loses_nothing_finished(
    interrupted: Callable[..., Run], record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", "SIGTERM to every process, including Ray's")
    run = interrupted()
    cut_off = next_trial(run)
    for process in run.processes():  # as SLURM and systemd do
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
    assert run.ended(timeout_s=30) == 143, run.text()
    assert (
        "Terminated, and Ray with it. Finished work is in the log; the same command resumes."
        in run.text()
    )
    assert "Traceback" not in run.text()
    check_no_process_is_left(run, within_s=20, but_for=AGENTS)
    check_interrupted(run, cut_off)


def test_after_kills_of_the_driver_and_of_a_trial_both_trials_resume(
    interrupted: Callable[..., Run], record_property: Callable[[str, object], None]
) -> None:
    record_property(
        "fault",
        "kill -9 of the driver, the same command at once, and kill -9 of a trial's process",
    )
    first = interrupted()
    with_driver = next_trial(first)
    first.driver.kill()
    second = interrupted()  # at once: remains of the first run must not disturb it
    check_no_process_is_left(first, within_s=20, but_for=AGENTS)
    alone = next_trial(second)
    process = second.trial_process()
    assert process is not None
    os.kill(process, signal.SIGKILL)
    next_trial(second)
    os.killpg(second.driver.pid, signal.SIGINT)
    assert second.ended() == 130, second.text()
    assert re.search(
        r"\d  epoch \d/5  running  AP \S+  its process died; ",
        second.text(),
    )
    assert "Traceback" not in second.text()
    log = check_log(first.storage, "cut-off")
    for killed in (with_driver, alone):
        assert events(log, killed) == [(1, "started"), (2, "resumed"), (2, "completed")]


def test_damaged_files_are_quarantined_and_the_study_ends_as_if_undisturbed(
    interrupted: Callable[..., Run],
    undisturbed: Results,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", "a truncated fragment, a torn checkpoint and a foreign file")
    run = interrupted()
    cut_off = next_trial(run)
    run.driver.kill()
    check_no_process_is_left(run, within_s=20, but_for=AGENTS)
    folder = run.storage.local / "log" / "v1" / "trials" / "study=cut-off"
    checkpoint = run.storage.local / "trials" / cut_off / "checkpoint.pt"
    # the newest: older fragments may have been replaced by a compaction, and no longer count
    fragment = next(
        path
        for path in sorted(folder.glob("part-*.parquet"), reverse=True)
        if "completed" in pq.read_table(path)["event"].to_pylist()
    )
    for path in (checkpoint, fragment):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (folder / "notes.parquet").write_text("not of this log")
    check = orchestrate("log", "check", "--quarantine", "--storage", run.storage.root)
    found = subprocess.run(check, capture_output=True, text=True)
    assert found.returncode == 1
    for path in (checkpoint, fragment):
        assert path.name in found.stdout
        assert not path.exists()
    assert subprocess.run(check, capture_output=True, text=True).returncode == 0

    last = interrupted()
    assert last.ended() == 0, last.text()
    assert "Traceback" not in last.text()
    check_no_process_is_left(last, within_s=10)
    check_log(last.storage, "cut-off", undisturbed)


def test_a_cancelled_trial_ends_alone_and_an_excluded_one_runs_again(
    begin: Callable[..., Run],
) -> None:
    three = ("--set", "search.trials=3")
    run = begin(*three)
    cancelled = next_trial(run)
    request_cancel(run.storage, cancelled, "it is slow")
    assert run.ended() == 0, run.text()
    assert re.search(r"2  epoch \d/5  cancelled  cancelled: it is slow\n", run.text())
    log = read_log(run.storage)
    assert events(log, cancelled) == [(1, "started"), (1, "cancelled")]
    assert [state.state for state in students(log)] == ["completed", "cancelled", "completed"]
    # a cancelled trial has ended and is not run again; an excluded trial is, from its first epoch
    excluded = students(log)[0]
    exclude(run.storage, excluded, "a broken disk")
    again = begin(*three)
    assert again.ended() == 0, again.text()
    assert "1 trial run in" in again.text()
    log = read_log(run.storage)
    assert [state.state for state in students(log)] == ["completed", "cancelled", "completed"]
    assert events(log, excluded.key)[-3:] == [(1, "excluded"), (2, "started"), (2, "completed")]
    assert log.epochs_of(excluded.key)["attempt"].to_pylist() == [2] * EPOCHS


def test_train_ends_after_its_epoch_at_sigterm(
    prepared: tuple[Path, Storage], tmp_path: Path
) -> None:
    path, storage = prepared
    shutil.copytree(storage.local, tmp_path / "runs")
    own = Storage.at(tmp_path / "runs")
    command = orchestrate("train", path, "--storage", own.root, "--set", "training.epochs=100")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith("epoch 1/100") for line in process.stdout)
        process.terminate()
        rest = process.stdout.read()
        assert process.wait(60) == 143, rest
    assert "Terminated. Finished work is in the log; the same command resumes." in rest
    log = read_log(own)
    [state] = students(log)
    assert (state.state, state.last.reason) == ("interrupted", "the command was interrupted")
    # only one epoch if the signal came before the start of the second
    assert state.epoch == log.epochs_of(state.key).num_rows >= 1
    assert saved_epoch(own, state.key) == state.epoch
