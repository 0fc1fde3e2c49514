from collections.abc import Sequence

import pytest

from kdr.errors import ConfigError
from kdr.report.ranking import (
    RankedTrial,
    best_trial,
    count_states,
    ranking,
    ranking_rows,
    searched_metric,
)
from kdr.results.reader import read_log
from kdr.results.schema import ArmRow
from kdr.results.writer import LogWriter
from tests.conftest import ExampleLog

LINKS = "distill.kdr.review_links"


def names(trials: Sequence[RankedTrial]) -> list[tuple[int | None, str]]:
    return [(trial.rank, trial.key) for trial in trials]


def test_only_completed_trials_have_a_rank_and_they_come_first(example_log: ExampleLog) -> None:
    example_log.trial("low", AP=0.1)
    example_log.trial("early", AP=0.9, event="stopped_early", epoch=1)
    example_log.trial("broken", AP=None, event="failed", epoch=0)
    example_log.trial("high", AP=0.3)
    example_log.trial("running", AP=0.8, event="started", epoch=2)
    example_log.trial("unmeasured", AP=None)
    trials = ranking(read_log(example_log.storage), "example")
    assert names(trials) == [
        (1, "high"),
        (2, "low"),
        (None, "unmeasured"),
        (None, "early"),
        (None, "running"),
        (None, "broken"),
    ]
    assert count_states(trials) == {"completed": 3, "stopped early": 1, "running": 1, "failed": 1}


def test_nan_never_wins(example_log: ExampleLog) -> None:
    example_log.trial("nan", AP=float("nan"))
    example_log.trial("real", AP=0.01)
    trials = ranking(read_log(example_log.storage), "example")
    assert names(trials) == [(1, "real"), (None, "nan")]


def test_a_teacher_is_not_ranked(example_log: ExampleLog) -> None:
    example_log.trial("teacher", AP=0.9, role="teacher")
    example_log.trial("student", AP=0.1)
    assert names(ranking(read_log(example_log.storage), "example")) == [(1, "student")]


def test_searched_settings_are_columns_with_empty_cells_where_unset(
    example_log: ExampleLog,
) -> None:
    example_log.trial("a", parameters={"distill.kdr.weight": 1.0, LINKS: ["P4->P3"]}, AP=0.3)
    example_log.trial("b", parameters={"distill.kdr.weight": 5.0}, AP=0.2)
    columns, rows = ranking_rows(ranking(read_log(example_log.storage), "example"), "AP")
    assert columns == [
        "rank",
        "trial",
        "state",
        "AP",
        "epochs",
        "seconds",
        "distill.kdr.weight",
        LINKS,
        "key",
    ]
    assert rows == [
        [1, "a", "completed", 0.3, 4, 44.0, 1.0, '["P4->P3"]', "a"],
        [2, "b", "completed", 0.2, 4, 44.0, 5.0, None, "b"],
    ]


def test_a_trial_of_another_study_is_ranked_under_the_name_it_has_here(
    example_log: ExampleLog,
) -> None:
    example_log.trial("shared", AP=0.3)
    LogWriter(example_log.storage, "other").arms(
        [ArmRow(study="other", key="shared", arm="baseline", parameters='{"seed": 0}')]
    )
    [trial] = ranking(read_log(example_log.storage, "other"), "other")
    assert (trial.rank, trial.name, trial.parameters) == (1, "baseline", {"seed": 0})


def test_another_metric_changes_the_order(example_log: ExampleLog) -> None:
    example_log.trial("a", AP=0.3, AP75=0.1)
    example_log.trial("b", AP=0.2, AP75=0.2)
    log = read_log(example_log.storage)
    assert best_trial(log, "example").key == "a"
    assert best_trial(log, "example", "AP75").key == "b"
    with pytest.raises(ConfigError, match=r"--metric: must be one of AP, AP50, .*, got 'mAP'"):
        ranking(log, "example", "mAP")


def test_without_a_completed_trial_the_error_lists_the_states(example_log: ExampleLog) -> None:
    example_log.trial("a", event="failed")
    example_log.trial("b", event="stopped_early")
    with pytest.raises(
        ConfigError,
        match=r"no completed trial with a value for AP \(1 stopped early, 1 failed\)\. Run the",
    ):
        best_trial(read_log(example_log.storage), "example")
    with pytest.raises(ConfigError, match=r"has no completed trial .* \(no trials\)"):
        best_trial(read_log(example_log.storage), "unknown")


def test_the_metric_is_that_of_the_search(example_log: ExampleLog) -> None:
    assert searched_metric(read_log(example_log.storage), "example") == "AP"
    example_log.content["search"]["metric"] = "AP50"
    example_log.trial("a")
    assert searched_metric(read_log(example_log.storage), "example") == "AP50"


def test_a_metric_is_that_of_the_last_run(example_log: ExampleLog) -> None:
    example_log.trial("a")
    example_log.trial("b")
    example_log.content["search"]["metric"] = "AP50"
    example_log.trial("a")
    assert searched_metric(read_log(example_log.storage), "example") == "AP50"
