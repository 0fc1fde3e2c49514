from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from kdr.config.study import study_from
from kdr.report.cost import Cost, logged_cost
from kdr.results.reader import read_log
from kdr.results.schema import Event
from tests.conftest import ExampleLog


class CostOf(Protocol):
    def __call__(self, *changes: Mapping[str, Any], workers: int = 1) -> Cost | None: ...


@pytest.fixture
def cost(example_log: ExampleLog) -> CostOf:
    """Estimates the cost of the example's trial with changed settings."""

    def of(*changes: Mapping[str, Any], workers: int = 1) -> Cost | None:
        study = study_from(example_log.content, folder=Path("/"))
        return logged_cost(
            read_log(example_log.storage),
            [study.trial_with(change) for change in changes],
            workers=workers,
        )

    return of


def known(cost: Cost | None) -> Cost:
    assert cost is not None
    return cost


def test_the_cost_is_the_mean_of_logged_trials_of_the_same_shape(
    example_log: ExampleLog, cost: CostOf
) -> None:
    example_log.trial("a", seconds_per_epoch=10.0)
    example_log.trial("b", parameters={"distill.kdr.weight": 5.0}, seconds_per_epoch=20.0)
    found = known(cost({"distill.kdr.weight": 1.0, "seed": 3}, {"training.lr": 0.5}))
    assert (found.num_trials, found.seconds, found.num_logged, found.gpu_hours) == (
        2,
        2 * 4 * (11 + 21) / 2,
        2,
        0.0,
    )


def test_gpu_hours_are_gpus_times_hours(example_log: ExampleLog, cost: CostOf) -> None:
    example_log.trial("a", num_gpus=8.0, device="GPU")
    found = known(cost({}))
    assert found.gpu_hours == pytest.approx(8 * 44 / 3600)
    assert found.device == "GPU"


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
def test_trials_of_another_shape_give_no_estimate(
    example_log: ExampleLog, cost: CostOf, changes: dict[str, Any]
) -> None:
    example_log.trial("a")
    assert cost({}) is not None
    assert cost(changes) is None
    assert cost({}, changes) is None


def test_trials_with_several_workers_give_no_estimate_for_one(
    example_log: ExampleLog, cost: CostOf
) -> None:
    example_log.content["resources"] = {"workers": 2}
    example_log.trial("a")
    assert cost({}) is None
    assert known(cost({}, workers=2)).seconds == 44


@pytest.mark.parametrize(
    ("event", "role"),
    [("failed", "student"), ("stopped_early", "student"), ("completed", "teacher")],
)
def test_only_completed_students_count(
    example_log: ExampleLog, cost: CostOf, event: Event, role: str
) -> None:
    example_log.trial("a", event=event, role=role)
    assert cost({}) is None


def test_only_the_device_that_ran_last_counts(example_log: ExampleLog, cost: CostOf) -> None:
    example_log.trial("a", seconds_per_epoch=99.0, device="CPU")
    example_log.trial("b", seconds_per_epoch=9.0, device="GPU")
    found = known(cost({}))
    assert (found.seconds, found.device, found.num_logged) == (40, "GPU", 1)


def test_without_distillation_the_teacher_does_not_matter(
    example_log: ExampleLog, cost: CostOf
) -> None:
    example_log.trial("a", changes={"distill": {}})
    assert cost({"distill": {}, "teacher": None}) is not None


def test_nothing_to_run_costs_nothing(cost: CostOf) -> None:
    assert (known(cost()).num_trials, known(cost()).seconds) == (0, 0.0)
