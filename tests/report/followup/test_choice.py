from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import study_from
from kdr.config.trial import TrialConfig
from kdr.report.followup.choice import choice_warnings, seeds_of_choice
from kdr.results.reader import read_log
from tests.conftest import ExampleLog


@pytest.fixture
def searched(example_log: ExampleLog) -> ExampleLog:
    """A search with seeds 4 and 5 over two weights."""
    for seed in (4, 5):
        for weight in (1.0, 2.0):
            example_log.trial(
                f"{weight}-{seed}",
                parameters={"distill.kdr.weight": weight},
                changes={"seed": seed},
            )
    return example_log


def config(example_log: ExampleLog, changes: Mapping[str, Any]) -> TrialConfig:
    return study_from(example_log.content, folder=Path("/")).trial_with(changes)


def test_seeds_of_choice_are_those_of_trials_with_the_same_settings(searched: ExampleLog) -> None:
    searched.trial("late", parameters={"distill.kdr.weight": 5.0}, changes={"seed": 9})
    log = read_log(searched.storage)
    chosen = config(
        searched,
        {"distill.kdr.weight": 2.0, "seed": 77, "data.search_split": 0, "training.epochs": 99},
    )
    assert seeds_of_choice(log, chosen) == {"example": {4, 5}}
    assert seeds_of_choice(log, config(searched, {"distill.kdr.weight": 2.5})) == {}


def test_without_a_search_nothing_is_chosen(example_log: ExampleLog) -> None:
    del example_log.content["search"]
    example_log.trial("a")
    assert (
        seeds_of_choice(
            read_log(example_log.storage), config(example_log, {"distill.kdr.weight": 2.0})
        )
        == {}
    )


def test_shared_seeds_raise_a_warning(searched: ExampleLog) -> None:
    log, chosen = read_log(searched.storage), config(searched, {"distill.kdr.weight": 2.0})
    [warning] = choice_warnings(log, chosen, (3, 4, 5))
    assert warning.startswith(
        "ablation.seeds: the search example chose such settings with seeds 4, 5"
    )
    assert choice_warnings(log, chosen, (1, 2, 3)) == []
