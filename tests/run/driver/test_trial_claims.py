"""Drivers of several studies that want the same trials: in this process, in others, and as another
machine's would look."""

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
            with (folder / f"{key}-is-trained").open("x"):  # an error if another one trains it now
                time.sleep(0.002)
            (folder / f"{key}-is-trained").unlink()
            (folder / f"{key}-by-{study}").touch()
            claims.give_back(key)
            waiting.discard(key)
"""


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path / "runs")


def driver_of(storage: Storage, study: str, **changes: object) -> str:
    """Writes the claim that a driver which runs a study keeps, of this process if nothing else is
    said."""
    values = {
        "host": "here",
        "pid": os.getpid(),
        "machine": module._machine(),
        "born": module._born(os.getpid()),
        "since": "now",
    }
    claim = Claim(**{**values, "held": True, **changes})  # type: ignore[arg-type]
    path = storage.drivers(study) / f"{claim.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(claim)))
    return claim.name


def claims_of(storage: Storage, study: str, **changes: object) -> TrialClaims:
    return TrialClaims(storage, study, driver_of(storage, study, **changes))


def test_a_trial_is_one_drivers_until_it_gives_it_back(storage: Storage) -> None:
    first, second = claims_of(storage, "first"), claims_of(storage, "second")
    assert first.take(["a", "b"]) == {"a", "b"}
    assert first.take(["a"]) == {"a"}
    assert second.take(["a", "b", "c"]) == {"c"}
    [holder] = second.holders(["a", "b", "c"])
    assert (holder.study, holder.keys, str(holder)) == (
        "first",
        {"a", "b"},
        f"study first (process {os.getpid()} on here)",
    )
    first.give_back("a")
    assert second.take(["a", "b"]) == {"a"}
    assert first.take(["a"]) == set()
    second.give_back("never taken")
    assert second.holders([]) == []


def test_at_the_end_of_its_driver_every_trial_is_free(storage: Storage) -> None:
    with claims_of(storage, "first") as first:
        first.take(["a"])
    second = claims_of(storage, "second")
    assert second.take(["a"]) == {"a"}
    assert second.holders(["a"]) == []


def test_of_two_that_write_at_once_the_later_one_steps_back_and_the_earlier_one_waits_for_that(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = claims_of(storage, "first", name="0"), claims_of(storage, "second", name="1")
    looks, write = list[float](), later._write
    later._write({"a"})  # it has written, and not looked yet

    def the_later_one_looks(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            write(set())

    monkeypatch.setattr("kdr.run.driver.trial_claims.time.sleep", the_later_one_looks)
    monkeypatch.setattr(earlier, "holders", holders_after_writing(earlier))
    assert earlier.take(["a"]) == {"a"}
    assert len(looks) == 2
    monkeypatch.undo()
    assert later.take(["a"]) == set()


def test_who_goes_first_steps_back_from_one_that_does_not(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier, later = claims_of(storage, "first", name="0"), claims_of(storage, "second", name="1")
    assert later.take(["a"]) == {"a"}
    monkeypatch.setattr("kdr.run.driver.trial_claims.time.sleep", lambda _seconds: None)
    monkeypatch.setattr(earlier, "holders", holders_after_writing(earlier))
    assert earlier.take(["a", "b"]) == {"b"}
    monkeypatch.undo()
    assert later.holders(["a"]) == []


def holders_after_writing(claims: TrialClaims) -> Callable[[set[str]], list[Holder]]:
    """Sees nobody at the first look, as if the other one had written just then."""
    first, look = iter([list[Holder]()]), claims.holders
    return lambda keys: next(first, look(keys))


@pytest.mark.slow
def test_drivers_that_want_the_same_trials_never_train_one_at_once(
    storage: Storage, tmp_path: Path, python_process: Callable[..., subprocess.Popen[bytes]]
) -> None:
    studies = ["first", "second", "third"]
    processes = [python_process(CONTEND, storage.root, tmp_path, study) for study in studies]
    while len(list(tmp_path.glob("ready-*"))) < 3:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("trial-*-by-*"))) == 3 * 12
    assert list(storage.studies_with_drivers.glob("*/*")) == []  # type: ignore[union-attr]


def test_what_a_killed_driver_trained_is_free_at_once(
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


def test_a_driver_of_another_machine_keeps_its_trials_while_it_shows_signs_of_life(
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


def test_a_file_that_is_no_drivers_claims_nothing(storage: Storage) -> None:
    name = driver_of(storage, "other")
    trials_of(storage.drivers("other"), name).write_bytes(b"\xff{")
    assert claims_of(storage, "own").take(["a"]) == {"a"}


def test_the_claim_of_a_study_names_the_driver_that_claims_trials(storage: Storage) -> None:
    with (
        sole_driver(storage, "own", on_waiting=pytest.fail) as driver,
        TrialClaims(storage, "own", driver) as claims,
    ):
        claims.take(["a"])
        assert [holder.claim.name for holder in claims_of(storage, "other").holders(["a"])] == [
            driver
        ]
    assert list(storage.drivers("own").iterdir()) == []
