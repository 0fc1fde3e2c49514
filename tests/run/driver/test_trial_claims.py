"""Drivers of several studies with common trials: in this process, in others, and as if on another
machine."""

import dataclasses
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdr.run.driver import sole_driver as module
from kdr.run.driver.sole_driver import Claim, sole_driver, trials_of
from kdr.run.driver.trial_claims import Holder, TrialClaims
from kdr.storage.layout import Storage

HOLD = """
import sys, time
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.storage.layout import Storage
storage = Storage.at(sys.argv[1])
driver = sole_driver(storage, "other", on_waiting=print)
with driver as name, TrialClaims(storage, "other", name) as claims:
    claims.take(["a", "b"])
    open(sys.argv[2], "w").close()
    time.sleep(60)
"""

CONTEND = """
import sys, time
from pathlib import Path
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.storage.layout import Storage
storage, folder, study = Storage.at(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
driver = sole_driver(storage, study, on_waiting=print)
with driver as name, TrialClaims(storage, study, name) as claims:
    (folder / f"ready-{study}").touch()
    while not (folder / "go").exists():
        time.sleep(0.001)
    waiting = {f"trial-{number}" for number in range(12)}
    while waiting:
        for key in sorted(claims.take(waiting)):
            with (folder / f"{key}-is-trained").open("x"):  # an error if another driver trains it
                time.sleep(0.002)
            (folder / f"{key}-is-trained").unlink()
            (folder / f"{key}-by-{study}").touch()
            claims.release(key)
            waiting.discard(key)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


def driver_of(storage: Storage, study: str, **changes: object) -> str:
    """Writes the claim of a study's driver, by default of this process; returns its name."""
    values = {
        "host": "here",
        "pid": os.getpid(),
        "machine": module._machine(),
        "born": module._born(os.getpid()),
        "since": "now",
    }
    claim = Claim(**{**values, "held": True, **changes})  # type: ignore[arg-type]
    path = storage.local / "drivers" / study / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(dataclasses.asdict(claim)).encode())
    return claim.name


def claims_of(storage: Storage, study: str, **changes: object) -> TrialClaims:
    return TrialClaims(storage, study, driver_of(storage, study, **changes))


def test_a_trial_is_claimed_by_one_driver_until_it_releases_it(storage: Storage) -> None:
    first, second = claims_of(storage, "first"), claims_of(storage, "second")
    assert first.take(["a", "b"]) == {"a", "b"}
    assert first.take(["a"]) == {"a"}
    assert second.take(["a", "b", "c"]) == {"c"}
    [holder] = second.holders(["a", "b", "c"])
    assert (holder.study, holder.keys, str(holder)) == (
        "first",
        frozenset({"a", "b"}),
        f"study first (process {os.getpid()} on here)",
    )
    first.release("a")
    assert second.take(["a", "b"]) == {"a"}
    assert first.take(["a"]) == set()
    second.release("never taken")
    assert second.holders([]) == []


def test_a_driver_releases_its_trials_when_it_ends(storage: Storage) -> None:
    with claims_of(storage, "first") as first:
        first.take(["a"])
    second = claims_of(storage, "second")
    assert second.take(["a"]) == {"a"}
    assert second.holders(["a"]) == []


def test_of_two_simultaneous_claims_the_one_without_priority_withdraws_and_the_other_waits(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, other = claims_of(storage, "first", name="0"), claims_of(storage, "second", name="1")
    pauses, write = list[float](), other._write
    other._write({"a"})  # it has written, and not checked yet

    def the_other_one_checks(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            write(set())

    monkeypatch.setattr("kdr.run.driver.trial_claims.time.sleep", the_other_one_checks)
    monkeypatch.setattr(prior, "holders", holders_after_writing(prior))
    assert prior.take(["a"]) == {"a"}
    assert len(pauses) == 2
    monkeypatch.undo()
    assert other.take(["a"]) == set()


def test_a_driver_with_priority_withdraws_if_the_other_one_does_not(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, other = claims_of(storage, "first", name="0"), claims_of(storage, "second", name="1")
    assert other.take(["a"]) == {"a"}
    monkeypatch.setattr("kdr.run.driver.trial_claims.time.sleep", lambda _seconds: None)
    monkeypatch.setattr(prior, "holders", holders_after_writing(prior))
    assert prior.take(["a", "b"]) == {"b"}
    monkeypatch.undo()
    assert other.holders(["a"]) == []


def holders_after_writing(claims: TrialClaims) -> Callable[[set[str]], list[Holder]]:
    """Finds no holder at first, as if the other driver had written right after that."""
    first, check = iter([list[Holder]()]), claims.holders
    return lambda keys: next(first, check(keys))


@pytest.mark.slow
def test_drivers_with_common_trials_never_train_one_at_the_same_time(
    storage: Storage, tmp_path: Path, python_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    studies = ["first", "second", "third"]
    processes = [python_process(CONTEND, storage.root, tmp_path, study) for study in studies]
    while len(list(tmp_path.glob("ready-*"))) < 3:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("trial-*-by-*"))) == 3 * 12
    assert list(storage.studies_with_drivers.glob("*/*")) == []  # type: ignore[attr-defined]


def test_the_trials_of_a_killed_driver_are_free_at_once(
    storage: Storage, tmp_path: Path, python_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    other, mark = python_process(HOLD, storage.root, tmp_path / "holds"), tmp_path / "holds"
    while not mark.exists():
        assert other.poll() is None
        time.sleep(0.02)
    own = claims_of(storage, "own")
    assert own.take(["a", "c"]) == {"c"}
    other.kill()
    other.wait()
    assert own.take(["a"]) == {"a"}
    assert list(storage.drivers("other").iterdir()) == []


def test_a_driver_on_another_machine_keeps_its_trials_as_long_as_its_heart_beats(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEAD_AFTER_S", 0.3)
    other = claims_of(storage, "other", machine="another start", name="0")
    assert other.take(["a"]) == {"a"}
    own = claims_of(storage, "own")
    for beat in range(1, 5):
        assert own.take(["a"]) == set()
        time.sleep(0.15)
        driver_of(storage, "other", machine="another start", name="0", beat=beat)
    assert own.take(["a"]) == set()
    time.sleep(0.4)
    assert own.take(["a"]) == {"a"}


def test_a_file_that_is_not_a_drivers_claims_nothing(storage: Storage) -> None:
    name = driver_of(storage, "other")
    trials_of(storage.drivers("other"), name).write_bytes(b"\xff{")
    assert claims_of(storage, "own").take(["a"]) == {"a"}


def test_a_claim_on_trials_has_the_name_of_the_drivers_claim_on_its_study(storage: Storage) -> None:
    with (
        sole_driver(storage, "own", on_waiting=pytest.fail) as driver,
        TrialClaims(storage, "own", driver) as claims,
    ):
        claims.take(["a"])
        assert [holder.claim.name for holder in claims_of(storage, "other").holders(["a"])] == [
            driver
        ]
    assert list(storage.drivers("own").iterdir()) == []
