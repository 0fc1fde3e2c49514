from pathlib import Path

import pytest

from kdr.config.study import study_from
from kdr.report.cost import logged_cost
from kdr.results.reader import read_log


@pytest.fixture
def cost(example_log):
    """The cost of the example's trial, changed, by what the log holds."""

    def of(*changes, workers=1):
        study = study_from(example_log.content, folder=Path("/"))
        return logged_cost(
            read_log(example_log.storage),
            [study.trial_with(change) for change in changes],
            workers=workers,
        )

    return of


def test_the_cost_is_the_mean_of_logged_trials_of_the_same_shape(example_log, cost):
    example_log.trial("a", seconds_per_epoch=10.0)
    example_log.trial("b", parameters={"distill.kdr.weight": 5.0}, seconds_per_epoch=20.0)
    found = cost({"distill.kdr.weight": 1.0, "seed": 3}, {"training.lr": 0.5})
    assert (found.num_trials, found.seconds, found.num_logged, found.gpu_hours) == (
        2,
        2 * 4 * (11 + 21) / 2,
        2,
        0.0,
    )


def test_gpu_hours_are_the_gpus_that_trials_hold_times_their_hours(example_log, cost):
    example_log.trial("a", num_gpus=8.0, device="GPU")
    found = cost({})
    assert (found.gpu_hours, found.device) == (pytest.approx(8 * 44 / 3600), "GPU")


@pytest.mark.parametrize(
    "changes",
    [
        {"training.epochs": 5},
        {"training.batch_size": 8},
        {"training.precision": "bf16"},
        {"student.backbone": "resnet18"},
        {"teacher.backbone": "resnet34"},
        {"data.search_split": 0},
        {"data.image_size_px": 96},
        {"distill": {}},
        {"distill": {"fitnet": {}}},
    ],
    ids=str,
)
def test_another_shape_says_nothing(example_log, cost, changes):
    example_log.trial("a")
    assert cost({}) is not None
    assert cost(changes) is None
    assert cost({}, changes) is None


def test_trials_of_several_workers_say_nothing_of_one(example_log, cost):
    example_log.content["resources"] = {"workers": 2}
    example_log.trial("a")
    assert cost({}) is None
    assert cost({}, workers=2).seconds == 44


@pytest.mark.parametrize(
    ("event", "role"),
    [("failed", "student"), ("stopped_early", "student"), ("completed", "teacher")],
)
def test_only_completed_students_count(example_log, cost, event, role):
    example_log.trial("a", event=event, role=role)
    assert cost({}) is None


def test_the_device_that_ran_last_counts_alone(example_log, cost):
    example_log.trial("a", seconds_per_epoch=99.0, device="CPU")
    example_log.trial("b", seconds_per_epoch=9.0, device="GPU")
    found = cost({})
    assert (found.seconds, found.device, found.num_logged) == (40, "GPU", 1)


def test_a_trial_without_a_teacher_does_not_ask_which_one_is_named(example_log, cost):
    example_log.trial("a", changes={"distill": {}})
    assert cost({"distill": {}, "teacher": None}) is not None


def test_nothing_to_run_costs_nothing(cost):
    assert (cost().num_trials, cost().seconds) == (0, 0.0)
