"""A process whose trial hangs is ended, and says what it was doing; one whose trial goes on is left
alone."""

import faulthandler
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdr.run.engine.watchdog import Watchdog, hang_of
from kdr.storage.layout import Storage
from kdr.training.fit import untracked

STUCK_IN_THE_SECOND_BATCH = """
import sys, time
from kdr.run.engine.watchdog import Watchdog
from kdr.storage.layout import Storage
from kdr.training.fit import untracked

def batches():
    yield "first"
    wait_for_a_disk_that_is_gone()

def wait_for_a_disk_that_is_gone():
    time.sleep(60)

watchdog = Watchdog(Storage.at(sys.argv[1]), "key", 1.0)
def epochs():
    yield from watchdog.watched(untracked)(batches(), 2, "epoch 1/1")

for batch in watchdog.over(epochs()):
    print(batch, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_hangs_is_ended_and_its_stack_is_kept(
    tmp_path: Path, python_process: Callable[..., Any]
) -> None:
    assert python_process(STUCK_IN_THE_SECOND_BATCH, tmp_path).wait(60) == 1
    storage = Storage.at(tmp_path)
    doing = hang_of(storage, "key")
    assert doing is not None
    assert doing.startswith("hang-0:\nTimeout")
    assert "wait_for_a_disk_that_is_gone" in doing
    assert hang_of(storage, "key") is None  # told once


def slow_epochs(watchdog: Watchdog) -> Iterator[Any]:
    """Two epochs of five batches, each of them shorter than the limit and all together longer."""
    for epoch in (1, 2):
        for _ in watchdog.watched(untracked)(iter(range(5)), 5, ""):  # type: ignore[arg-type]
            time.sleep(0.3)
        yield epoch


@pytest.mark.slow
def test_a_trial_that_goes_on_may_take_as_long_as_it_likes_and_so_may_who_asks_for_its_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_for = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda limit_s, **_: set_for.append(limit_s)
    )
    cancelled = []
    monkeypatch.setattr(
        faulthandler, "cancel_dump_traceback_later", lambda: cancelled.append(len(set_for))
    )
    storage = Storage.at(tmp_path)
    watchdog = Watchdog(storage, "key", 1.0)
    for epoch in watchdog.over(slow_epochs(watchdog)):
        assert cancelled[-1] == len(set_for)  # nothing runs while an epoch is looked at
        assert epoch in (1, 2)
    assert len(set_for) >= 10
    assert set(set_for) == {1.0}
    assert not list(storage.trial("key").iterdir())
