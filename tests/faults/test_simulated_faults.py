"""Simulated studies whose driver and trials are killed at any change of the disk: each ends as if
undisturbed."""

import functools
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from kdr.config.study import Study, study_from
from kdr.run.driver.sole_driver import Claims
from kdr.run.driver.trial_claims import TrialClaims
from kdr.storage.layout import Storage
from tests.faults.invariants import Results, check_log, results_of
from tests.faults.simulation import NUM_SCHEDULES, Machine

TRIAL = {
    "data": {"dataset": "shapes", "search_split": 64},
    "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
    "distill": {"kdr": {}},
    "training": {"epochs": 2},
}
ARMS = {"design": "arms", "arms": {"light": {"distill.kdr.weight": 0.5}}, "seeds": [0, 1]}
WEIGHTS = {"distill.kdr.weight": {"float": [0.1, 50], "log": True}}
CHOICES = {"distill.kdr.weight": {"choice": [0.5, 1.0, 2.0, 4.0]}}
ASHA = {"asha": {"grace_epochs": 1, "reduction": 2}}
STUDIES: dict[str, dict[str, Any]] = {
    "an ablation": {"ablation": ARMS, "resources": {"max_concurrent": 2}},
    "micro-batches": {
        "trial": {**TRIAL, "training": {"epochs": 2, "micro_batch": "auto"}},
        "ablation": ARMS,
    },
    "a grid": {
        "search": {"parameters": CHOICES, "sampler": "grid"},
        "resources": {"max_concurrent": 2},
    },
    "random draws": {
        "search": {"parameters": WEIGHTS, "trials": 4, "sampler": "random"},
        "resources": {"max_concurrent": 2},
    },
    "tpe with asha": {
        "search": {"parameters": WEIGHTS, "trials": 4, "sampler": "tpe", "stop_early": ASHA},
        "resources": {"max_concurrent": 1},
    },
}
"""Samplers that learn and rules that compare trials depend on the order of parallel trials; studies
with these run one trial at a time."""

Fault = tuple[str, int]
FAULTS = st.tuples(
    st.sampled_from(["kill_driver_at", "kill_trial_at", "interrupt_at", "clock_back_at"]),
    st.integers(0, 200),
)
SCHEDULES, SEEDS = st.lists(FAULTS, min_size=1, max_size=4), st.integers(0, 9)


def study_named(name: str) -> Study:
    return study_from(
        {"study": "simulated", "trial": TRIAL, "keep_weights": 2, **STUDIES[name]},
        folder=Path("/"),
    )


@pytest.fixture(scope="module", autouse=True)
def _in_memory() -> Iterator[None]:
    """Storages are folders in memory if the machine has them: the order of writes matters here, not
    the disk."""
    before, tempfile.tempdir = tempfile.tempdir, "/dev/shm" if Path("/dev/shm").is_dir() else None
    yield
    tempfile.tempdir = before


@functools.cache
def undisturbed(name: str) -> tuple[Results, int]:
    """A study's results without faults, and its number of changes of the disk."""
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Storage.at(folder), study_named(name), Random(0))
        outcome = machine.run()
        assert outcome is not None
        assert outcome.num_run == 4
        results = results_of(machine.storage, "simulated")
        check_log(machine.storage, "simulated", results)
        return results, machine.num_changes


def check_schedule(name: str, faults: list[Fault], seed: int) -> None:
    """Runs a study once with each fault, then to its end, and checks the log each time."""
    expected, _ = undisturbed(name)
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Storage.at(folder), study_named(name), Random(seed))
        for what, when in faults:
            setattr(machine, what, when if what != "interrupt_at" else when % 20)
            machine.run()
            machine.kill_driver_at = machine.kill_trial_at = machine.interrupt_at = (
                machine.clock_back_at
            ) = None
            check_log(machine.storage, "simulated")
        outcome = machine.run()
        assert outcome is not None
        assert not outcome.interrupted
        check_log(machine.storage, "simulated", expected)


def test_a_trial_that_runs_out_of_memory_resumes_with_half_as_many_images(
    tmp_path: Path,
) -> None:
    machine = Machine(Storage.at(tmp_path), study_named("micro-batches"), Random(0))
    machine.run()
    log = check_log(machine.storage, "simulated")
    found = {state.state: key for key, state in log.states().items() if state.role == "student"}
    rows = [row for row in log.trials.to_pylist() if row["key"] == found["completed"]]
    # the reason has the images per pass of this attempt and of the next one
    assert [
        (row["attempt"], row["event"], row["failure_kind"], re.findall(r"\d+", row["reason"] or ""))
        for row in rows
    ] == [
        (1, "started", None, []),
        (1, "interrupted", "out_of_memory", ["16", "8"]),
        (2, "resumed", None, []),
        (2, "interrupted", "out_of_memory", ["8", "4"]),
        (3, "resumed", None, []),
        (3, "completed", None, []),
    ]
    assert list(machine.storage.local.glob("trials/*/micro-batch")) == []


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "tpe with asha"])
@pytest.mark.parametrize("number", range(5))
def test_a_trial_claimed_by_another_study_comes_last_and_the_results_are_the_same(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = undisturbed(name)
    key = list(expected)[number]
    machine = Machine(Storage.at(tmp_path), study_named(name), Random(0))
    driver = Claims(machine.storage.drivers("other"), "other")
    driver.take(pytest.fail)
    claims = TrialClaims(machine.storage, "other", driver.own.name)
    claims.take([key])
    waited = list[float]()

    def release_while_waiting(seconds: float) -> None:
        waited.append(seconds)
        claims.release(key)

    monkeypatch.setattr("kdr.run.shared_trials.time.sleep", release_while_waiting)
    machine.run()
    assert len(waited) == 1
    check_log(machine.storage, "simulated", expected)
    # the teacher's, and the best two
    assert len(list(tmp_path.glob("trials/*/student.pt"))) == 1 + 2


@pytest.mark.parametrize("name", STUDIES)
@settings(max_examples=10)
@given(faults=SCHEDULES, seed=SEEDS)
def test_a_disturbed_study_ends_like_an_undisturbed_one(
    name: str, faults: list[Fault], seed: int
) -> None:
    check_schedule(name, faults, seed)


@pytest.mark.faults
@pytest.mark.parametrize("name", STUDIES)
def test_many_more_schedules(name: str, record_property: Callable[[str, object], None]) -> None:
    record_property(
        "fault", f"simulated: kills, Ctrl-C and clocks set back, in random order: {name}"
    )
    record_property("times", NUM_SCHEDULES)

    @settings(max_examples=NUM_SCHEDULES, phases=[Phase.explicit, Phase.generate])
    @given(faults=SCHEDULES, seed=SEEDS)
    def all_of_them(faults: list[Fault], seed: int) -> None:
        check_schedule(name, faults, seed)

    all_of_them()


@pytest.mark.faults
@pytest.mark.parametrize("name", STUDIES)
def test_the_driver_is_killed_between_any_two_changes_of_the_disk(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    _, num_changes = undisturbed(name)
    record_property("fault", f"simulated: a kill between any two changes of the disk: {name}")
    # evenly spread if there are more changes than schedules
    num_moments = min(NUM_SCHEDULES, num_changes)
    moments = [index * num_changes // num_moments for index in range(num_moments)]
    record_property("times", num_moments)
    for when in moments:
        check_schedule(name, [("kill_driver_at", when)], seed=when)
