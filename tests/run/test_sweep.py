"""A search whose last trials other drivers train: sessions, and the waits between them."""

from typing import cast

import pytest

from kdr.config.trial import Trial, TrialConfig
from kdr.run import sweep
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.study_driver import RunEnd, StudyDriver

DRIVER = cast("StudyDriver", None)
"""Not used: sessions and waits are replaced."""


def unused(config: TrialConfig) -> Trial:
    raise AssertionError(config)


def search_with(
    monkeypatch: pytest.MonkeyPatch,
    sessions: list[tuple[RunEnd, set[str]]],
    waits: list[RunEnd],
) -> tuple[RunEnd, list[bool]]:
    """Runs a search with these ends; returns its end, and `rerun` of each session."""
    reruns: list[bool] = []

    def session(*_: object, rerun: bool = False) -> tuple[RunEnd, set[str]]:
        reruns.append(rerun)
        return sessions.pop(0)

    monkeypatch.setattr(sweep, "_run_session", session)
    monkeypatch.setattr(sweep, "wait_for_others", lambda *_: waits.pop(0))
    end = sweep.run_search(DRIVER, unused, ResolvedResources(), 1, rerun=True)
    return end, reruns


def test_sessions_follow_each_other_until_no_trial_is_left_to_others_and_only_the_first_reruns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sessions = [(RunEnd(num_run=3), {"a", "b"}), (RunEnd(num_run=1), {"b"}), (RunEnd(), set[str]())]
    end, reruns = search_with(monkeypatch, sessions, [RunEnd(), RunEnd()])
    assert end == RunEnd(num_run=4)
    assert reruns == [True, False, False]


def test_a_signal_while_it_waits_ends_the_search_without_another_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end, reruns = search_with(
        monkeypatch, [(RunEnd(num_run=3), {"a"})], [RunEnd(interrupted=True, terminated=True)]
    )
    assert end == RunEnd(num_run=3, interrupted=True, terminated=True)
    assert reruns == [True]


def test_an_aborted_search_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    aborted = RunEnd(num_run=3, num_failed=3, abort_reason="always the same")
    assert search_with(monkeypatch, [(aborted, {"a"})], []) == (aborted, [True])
