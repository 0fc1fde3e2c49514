"""One local Ray for the tests of all modules: to start one costs as much as a small study."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import ray

from kdr.run.cluster.ray_session import ray_session


@pytest.fixture(scope="session")
def _at_the_end() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def ray_here(_at_the_end: ExitStack) -> None:
    """Ray runs. Studies find it running and leave it running; a test that needs another one shuts
    it down."""
    if not ray.is_initialized():
        _at_the_end.enter_context(ray_session(None))


@pytest.fixture
def journals_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits for the disk ten times per trial, which would be nearly all of a searcher's
    tests' time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
