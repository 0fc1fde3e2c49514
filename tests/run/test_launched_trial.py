"""A trial through Tune's config and back."""

import json
from pathlib import Path

import pytest

from kdr.config.study import study_from
from kdr.config.trial import Trial
from kdr.plan.keys import make_trial
from kdr.run.launched_trial import LaunchedTrial, as_tune_grid


@pytest.fixture
def trial() -> Trial:
    content = {"study": "one", "trial": {"data": {"dataset": "shapes"}}}
    return make_trial(study_from(content, folder=Path("/")).base, data_id="data", weights_id=str)


def test_a_trial_comes_back_from_tunes_config_which_is_plain_json(trial: Trial) -> None:
    point = {"distill.kdr.weight": 2.0, "distill.kdr.review_links": ["P4->P3"]}
    launched = LaunchedTrial.of(trial, parameters=point, trials_known=3, attempts_before=1)
    again = LaunchedTrial.of_config(
        {**json.loads(json.dumps(launched.as_config())), "__trial_info__": "added by Tune"}
    )
    assert again == launched
    assert (again.trial, again.point) == (trial, point)


def test_a_studys_one_trial_has_no_parameters(trial: Trial) -> None:
    launched = LaunchedTrial.of(trial)
    assert launched.parameters is None
    assert launched.point == {}


def test_a_grid_lists_the_trials_in_their_order(trial: Trial) -> None:
    trials = [LaunchedTrial.of(trial, trials_known=number) for number in range(3)]
    configs = as_tune_grid(trials)["trial"]["grid_search"]
    assert [LaunchedTrial.of_config({"trial": config}) for config in configs] == trials
