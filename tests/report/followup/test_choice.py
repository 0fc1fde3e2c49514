from pathlib import Path

import pytest

from kdr.config.study import study_from
from kdr.report.followup.choice import choice_warnings, seeds_of_choice
from kdr.results.reader import read_log


@pytest.fixture
def searched(example_log):
    """A search with seeds 4 and 5 over two weights."""
    for seed in (4, 5):
        for weight in (1.0, 2.0):
            example_log.trial(
                f"{weight}-{seed}",
                parameters={"distill.kdr.weight": weight},
                changes={"seed": seed},
            )
    return example_log


def config(example_log, changes):
    return study_from(example_log.content, folder=Path("/")).trial_with(changes)


def test_a_search_has_chosen_with_the_seeds_of_its_trials_of_these_settings(searched):
    searched.trial("late", parameters={"distill.kdr.weight": 5.0}, changes={"seed": 9})
    log = read_log(searched.storage)
    chosen = config(
        searched,
        {"distill.kdr.weight": 2.0, "seed": 77, "data.search_split": 0, "training.epochs": 99},
    )
    assert seeds_of_choice(log, chosen) == {"example": {4, 5}}
    assert seeds_of_choice(log, config(searched, {"distill.kdr.weight": 2.5})) == {}


def test_an_ablation_and_a_single_trial_choose_nothing(example_log):
    del example_log.content["search"]
    example_log.trial("a")
    assert (
        seeds_of_choice(
            read_log(example_log.storage), config(example_log, {"distill.kdr.weight": 2.0})
        )
        == {}
    )


def test_shared_seeds_are_warned_of(searched):
    log, chosen = read_log(searched.storage), config(searched, {"distill.kdr.weight": 2.0})
    [warning] = choice_warnings(log, chosen, (3, 4, 5))
    assert warning.startswith(
        "ablation.seeds: the search example has chosen with 4, 5 among settings like the baseline's"
    )
    assert choice_warnings(log, chosen, (1, 2, 3)) == []
