"""Which trials of an ablation run, in which order and under which names; without Ray."""

from pathlib import Path
from typing import Any

import pytest

from kdr.config.study import Study, study_from
from kdr.results.reader import read_log
from kdr.results.schema import Event, TrialEvent
from kdr.results.writer import LogWriter
from kdr.run.trial_identity import trial_maker
from kdr.run.trial_list import TrialList
from kdr.storage.layout import Storage

TRIAL: dict[str, Any] = {
    "data": {"dataset": "shapes"},
    "teacher": {"backbone": "resnet18", "training": {"epochs": 2}},
    "student": {"backbone": "mobilenet_v3_small"},
    "distill": {"kdr": {}},
}
FACTORS: dict[str, Any] = {
    "review": {"off": {"distill.kdr.review_links": []}},
    "attention": {"off": {"distill.kdr.attention": "none"}},
}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(tmp_path)


def ablation(**settings: Any) -> Study:
    return study_from(
        {
            "study": "parts",
            "trial": TRIAL,
            "ablation": {"factors": FACTORS, "seeds": [7, 3], **settings},
        },
        folder=Path("/"),
    )


def listed(study: Study, storage: Storage) -> TrialList:
    return TrialList(study, trial_maker(study, storage))


def note(study: Study, storage: Storage) -> None:
    with LogWriter(storage, study.study) as log:
        listed(study, storage).note(log, read_log(storage))


def ended(
    storage: Storage, key: str, event: Event, *, study: str = "another", **columns: Any
) -> None:
    with LogWriter(storage, study) as log:
        log.event(TrialEvent(study=study, key=key, event=event, config="{}", **columns))


def test_trials_are_named_by_arm_and_seed_all_arms_of_a_seed_before_the_next(
    storage: Storage,
) -> None:
    trials = listed(ablation(), storage).trials.values()
    assert [one.name for one in trials] == [
        f"{arm}, seed {seed}"
        for seed in (7, 3)
        for arm in ("baseline", "review=off", "attention=off")
    ]
    assert [one.parameters for one in trials][1] == {"distill.kdr.review_links": [], "seed": 7}
    assert all(one.trial.config.seed == one.parameters["seed"] for one in trials if one.parameters)


def test_arms_that_are_the_same_trial_are_run_once_and_named_together(storage: Storage) -> None:
    trials = listed(ablation(design="factorial", seeds=[1]), storage).trials.values()
    assert [one.name for one in trials] == [
        "baseline, seed 1",
        "attention=off, seed 1",
        "review=off and review=off, attention=off, seed 1",
    ]


def test_a_study_without_search_or_ablation_is_its_one_trial(storage: Storage) -> None:
    study = study_from({"study": "one", "trial": TRIAL}, folder=Path("/"))
    [one] = listed(study, storage).trials.values()
    assert (one.name, one.parameters, one.trial.config) == ("1", None, study.base)
    note(study, storage)
    note(study, storage)
    assert [row["arm"] for row in read_log(storage).arms_of("one")] == ["trial-0001"]
    assert read_log(storage).arms.num_rows == 1


@pytest.mark.parametrize(
    ("event", "runs"),
    [
        ("completed", False),
        ("cancelled", False),
        ("failed", True),
        ("interrupted", True),
        ("started", True),
        ("stopped_early", True),
        ("planned", True),
    ],
)
def test_a_completed_or_cancelled_trial_does_not_run_again(
    storage: Storage, event: Event, runs: bool
) -> None:
    trials = listed(ablation(), storage)
    [first, *others] = trials.trials
    ended(storage, first, event, AP=0.5, epoch=12, reason="because")
    past = read_log(storage)
    assert [one.trial.key for one in trials.missing(past)] == ([first] if runs else []) + others
    shown = [(one.name, one.state, one.value, one.reason) for one in trials.progress(past)]
    assert shown == ([] if runs else [("baseline, seed 7", event, 0.5, "because")])


def test_an_excluded_trial_runs_again(storage: Storage) -> None:
    trials = listed(ablation(), storage)
    first = next(iter(trials.trials))
    ended(storage, first, "completed")
    ended(storage, first, "excluded")
    assert len(trials.missing(read_log(storage))) == 6


def test_arms_are_noted_again_only_when_the_file_has_changed(storage: Storage) -> None:
    note(ablation(), storage)
    note(ablation(), storage)
    assert read_log(storage).arms.num_rows == 6
    note(ablation(seeds=[7]), storage)
    log = read_log(storage)
    assert log.arms.num_rows == 9
    assert [row["seed"] for row in log.ablation_arms_of("parts")] == [7, 7, 7]
    note(ablation(), storage)
    assert len(read_log(storage).ablation_arms_of("parts")) == 6
