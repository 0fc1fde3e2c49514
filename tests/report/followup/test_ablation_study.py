"""The ablation of a chosen trial: its factors, its seeds, and its plan without warnings."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.ablation import Ablation
from kdr.config.strict_yaml import parse_yaml
from kdr.config.study import Study, study_from
from kdr.errors import ConfigError
from kdr.plan.expand import expand_study
from kdr.report.followup.ablation_study import ablation_yaml, chosen_by_search, chosen_in_file
from kdr.report.followup.best_study import best_study_yaml
from kdr.report.ranking import best_trial
from kdr.results.reader import read_log
from tests.conftest import ExampleLog

PARAMETERS: dict[str, Any] = {
    "distill.kdr.weight": {"float": [0.1, 50]},
    "distill.kdr.review_links": {"subset": ["P4->P3", "P5->P4"]},
    "distill.kdr.attention": {"choice": ["none", "both"]},
    "distill.kdr.masks": {"choice": ["none", "boxes"]},
    "distill.kdr.mask_values": {"choice": ["area", "binary"]},
    "distill.kdr.pyramid_scales": {"subset": ["full", 4], "at_least": 1},
    "training.lr": {"float": [1e-4, 1]},
    "training.epochs": {"int": [2, 8]},
    "seed": {"int": [0, 9]},
}
BEST = {
    "distill.kdr.weight": 7.5,
    "distill.kdr.review_links": ["P5->P4"],
    "distill.kdr.attention": "both",
    "distill.kdr.masks": "none",
    "distill.kdr.mask_values": "binary",
    "distill.kdr.pyramid_scales": ["full", 4],
    "training.lr": 0.3,
}


@pytest.fixture
def searched(example_log: ExampleLog) -> ExampleLog:
    """A search of two trials; `best` has every choice."""
    example_log.content["search"]["parameters"] = PARAMETERS
    example_log.trial("other", parameters={"distill.kdr.weight": 1.0}, changes={"seed": 3}, AP=0.1)
    example_log.trial("best", parameters=BEST, AP=0.4)
    return example_log


def study_of(text: str) -> Study:
    return study_from(parse_yaml(text, source="text"), folder=Path("/"))


def ablation_of(text: str) -> Ablation:
    ablation = study_of(text).ablation
    assert ablation is not None
    return ablation


def from_key(log: ExampleLog, key: str = "best", **seeds: Any) -> str:
    found = read_log(log.storage)
    return ablation_yaml(chosen_by_search(found, found.states()[key]), **{"num_seeds": 4, **seeds})


def test_each_choice_of_the_search_is_undone_alone(searched: ExampleLog) -> None:
    study = study_of(from_key(searched))
    assert study.ablation is not None
    assert study.ablation.factors == {
        "weight": {"default": {"distill.kdr.weight": 3.0}},
        "review": {"off": {"distill.kdr.review_links": []}},
        "attention": {"off": {"distill.kdr.attention": "none"}},
        # decoupling is already off, so mask values have no effect
        "pyramid": {"off": {"distill.kdr.pyramid_scales": ["full"]}},
        "lr": {"before": {"training.lr": 0.01}},
        "kdr": {"off": {"distill.kdr": None}},
    }
    assert (study.study, study.ablation.design, study.ablation.contrast) == (
        "example-ablation",
        "leave_one_out",
        "kdr=off",
    )
    assert study.ablation.metric == "AP"


def test_its_baseline_is_the_chosen_trial_on_the_validation_set_and_its_plan_has_no_warning(
    searched: ExampleLog,
) -> None:
    study = study_of(from_key(searched))
    state = read_log(searched.storage).states()["best"]
    chosen = study.trial_with({"data.search_split": 64, "seed": state.seed})
    assert chosen.model_dump_json() == state.config
    plan = expand_study(study)
    assert (len(plan.arms), plan.num_trials, plan.warnings) == (7, 7 * 4, ())


def test_its_seeds_are_not_those_of_the_search(searched: ExampleLog) -> None:
    assert ablation_of(from_key(searched)).all_seeds == (100, 101, 102, 103)
    searched.trial("late", changes={"seed": 101})
    assert ablation_of(from_key(searched)).all_seeds == (102, 103, 104, 105)
    assert ablation_of(from_key(searched, first_seed=4)).all_seeds == (4, 5, 6, 7)
    with pytest.raises(
        ConfigError,
        match=(
            r"--first-seed: must give seeds that took no part in the choice, got 0 to 3, of which"
            r" 0, 3 did\. .* start at 102"
        ),
    ):
        from_key(searched, first_seed=0)


def test_the_head_names_the_trial_and_the_seeds(searched: ExampleLog) -> None:
    head = [line for line in from_key(searched).splitlines() if line.startswith("#")]
    assert head[0] == "# Question: which choices of trial best of the search example matter?"
    assert "# The settings were chosen with seeds 0, 3; this study uses 100 to 103." in head


def test_a_file_with_one_trial_has_every_part_of_its_methods_as_a_factor(
    searched: ExampleLog,
) -> None:
    log = read_log(searched.storage)
    text = best_study_yaml(log, "example", best_trial(log, "example"), "AP")
    study = study_of(ablation_yaml(chosen_in_file(log, study_of(text)), num_seeds=2))
    assert study.study == "example-best-ablation"
    assert study.ablation is not None
    assert set(study.ablation.factors) == {"weight", "review", "attention", "pyramid", "kdr"}
    assert expand_study(study).warnings == ()


def test_two_methods_are_switched_off_one_by_one_without_a_contrast(searched: ExampleLog) -> None:
    searched.content["trial"]["distill"]["fitnet"] = {"weight": 2.0}
    searched.content["search"]["parameters"] = {
        **PARAMETERS,
        "distill.fitnet.weight": {"float": [0.1, 5]},
    }
    searched.trial("two", parameters={**BEST, "distill.fitnet.weight": 4.0}, AP=0.5)
    study = study_of(from_key(searched, "two"))
    assert study.ablation is not None
    assert [
        name for name in study.ablation.factors if "weight" in name or name in ("kdr", "fitnet")
    ] == [
        "distill.kdr.weight",
        "distill.fitnet.weight",
        "kdr",
        "fitnet",
    ]
    assert study.ablation.contrast is None
    assert len(expand_study(study).arms) == 1 + len(study.ablation.factors)


def test_a_choice_that_the_others_need_is_kept(searched: ExampleLog) -> None:
    searched.content["search"]["parameters"] = {
        "student.fpn_channels": {"choice": [64, 256]},
        **PARAMETERS,
    }
    parameters = {"student.fpn_channels": 256, "distill.kdr.weight": 2.0}
    searched.trial("wide", parameters=parameters, changes={"distill.kdr.align": "identity"}, AP=0.5)
    assert set(ablation_of(from_key(searched, "wide")).factors) == {
        "weight",
        "review",
        "attention",
        "decouple",
        "pyramid",
        "kdr",
    }


@pytest.mark.parametrize(
    ("key", "columns", "found"),
    [
        ("teacher", {"role": "teacher"}, "teacher teacher of example"),
        ("arm", {"arm": "baseline"}, "student arm of example"),
    ],
)
def test_a_trial_outside_a_search_is_refused(
    example_log: ExampleLog, key: str, columns: dict[str, Any], found: str
) -> None:
    if key == "arm":
        del example_log.content["search"]
    example_log.trial(key, **columns)
    with pytest.raises(
        ConfigError,
        match=rf"TRIAL: must be a trial of a search, got {found}\. Give another key, or",
    ):
        from_key(example_log, key)


def test_a_search_is_refused_as_a_file_with_one_trial(searched: ExampleLog) -> None:
    study = study_from(searched.content, folder=Path("/"))
    with pytest.raises(
        ConfigError, match="TRIAL: must be a study with a single trial, got a search, example"
    ):
        chosen_in_file(read_log(searched.storage), study)


def test_a_trial_without_choices_has_nothing_to_undo(example_log: ExampleLog) -> None:
    del example_log.content["search"]
    example_log.content["trial"] = {"data": {"dataset": "shapes"}}
    study = study_from(example_log.content, folder=Path("/"))
    with pytest.raises(
        ConfigError,
        match="TRIAL: must have a method or another choice to undo, got none",
    ):
        ablation_yaml(chosen_in_file(read_log(example_log.storage), study), num_seeds=2)
