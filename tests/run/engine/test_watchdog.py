"""A process whose trial hangs ends itself and leaves its stacks; a working one is left alone."""

import faulthandler
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from kdr.run.engine.watchdog import Watchdog, hang_of
from kdr.storage.layout import Storage
from kdr.training.fit import untracked
from kdr.training.metrics import EpochMetrics
from tests.run.tune_stand_ins import epoch_of

STUCK_IN_THE_SECOND_BATCH = """
import sys, time
from kdr.run.engine.watchdog import Watchdog
from kdr.storage.layout import Storage
from kdr.training.fit import untracked

def batches():
    yield "first"
    wait_for_a_lost_disk()

def wait_for_a_lost_disk():
    time.sleep(60)

watchdog = Watchdog(Storage.at(sys.argv[1]), "key", 1.0)
def epochs():
    yield from watchdog.watched(untracked)(batches(), 2, "epoch 1/1")

for batch in watchdog.over(epochs()):
    print(batch, flush=True)
"""


@pytest.mark.slow
def test_a_process_that_hangs_ends_and_its_stacks_are_kept(
    tmp_path: Path, python_process: Callable[..., Any]
) -> None:
    assert python_process(STUCK_IN_THE_SECOND_BATCH, tmp_path).wait(60) == 1
    storage = Storage.at(tmp_path)
    stacks = hang_of(storage, "key")
    assert stacks is not None
    assert stacks.startswith("hang-0:\nTimeout")
    assert "wait_for_a_lost_disk" in stacks
    assert hang_of(storage, "key") is None  # returned once


def slow_epochs(watchdog: Watchdog) -> Generator[EpochMetrics, None, None]:
    """Yields two epochs of five batches. A batch is shorter than the limit, an epoch longer."""
    for epoch in (1, 2):
        for _ in watchdog.watched(untracked)(iter(range(5)), 5, ""):  # type: ignore[arg-type]
            time.sleep(0.3)
        yield epoch_of(epoch, None)


@pytest.mark.slow
def test_neither_a_long_trial_nor_a_slow_caller_counts_as_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_for: list[float] = []
    monkeypatch.setattr(
        faulthandler, "dump_traceback_later", lambda limit_s, **_: set_for.append(limit_s)
    )
    cancelled: list[int] = []
    monkeypatch.setattr(
        faulthandler, "cancel_dump_traceback_later", lambda: cancelled.append(len(set_for))
    )
    storage = Storage.at(tmp_path)
    watchdog = Watchdog(storage, "key", 1.0)
    for epoch in watchdog.over(slow_epochs(watchdog)):
        assert cancelled[-1] == len(set_for)  # no timer runs while the caller has an epoch
        assert epoch.epoch in (1, 2)
    assert len(set_for) >= 10
    assert set(set_for) == {1.0}
    assert not list(storage.trial("key").iterdir())
