"""The learning rate and weight decay of each parameter, and the schedules."""

from typing import Any

import pytest
import torch
from torch import nn

from kdr.config.training import TrainingConfig
from kdr.training.optimisation import lr_factor, make_optimizer, make_schedule, step_epochs

PUBLISHED_FCOS = {
    "lr": 0.01,
    "weight_decay": 1e-4,
    "bias_lr_factor": 2.0,
    "bias_weight_decay": 0.0,
}


class Student(nn.Module):
    """Every kind of parameter that a detector has, and a bias that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(3, 4, 1).requires_grad_(False)
        self.conv = nn.Conv2d(4, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.linear = nn.Linear(8, 2)
        self.scales = nn.Parameter(torch.ones(5))


def settings_by_name(
    student: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each of the student's parameters."""
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    return {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
        if id(parameter) in names
    }


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_biases_of_convolutions_and_linear_layers_have_their_own_rate_and_decay(
    optimizer: Any,
) -> None:
    student = Student()
    found = settings_by_name(
        student,
        make_optimizer(
            TrainingConfig(optimizer=optimizer, **PUBLISHED_FCOS), student, nn.ModuleDict()
        ),
    )
    usual, of_biases = (0.01, 1e-4), (0.02, 0.0)
    assert found == {
        "conv.weight": usual,
        "conv.bias": of_biases,
        "norm.weight": usual,
        "norm.bias": usual,
        "linear.weight": usual,
        "linear.bias": of_biases,
        "scales": usual,
    }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"bias_lr_factor": 2.0}, (0.02, 1e-4)), ({"bias_weight_decay": 0.0}, (0.01, 0.0))],
)
def test_rate_and_decay_of_biases_are_set_separately(
    settings: dict[str, float], expected: tuple[float, float]
) -> None:
    student = Student()
    found = settings_by_name(
        student, make_optimizer(TrainingConfig(lr=0.01, **settings), student, nn.ModuleDict())
    )
    assert found["conv.bias"] == expected
    assert found["conv.weight"] == (0.01, 1e-4)


def test_by_default_all_trained_parameters_are_one_group_in_their_own_order() -> None:
    student = Student()
    [group] = make_optimizer(TrainingConfig(), student, nn.ModuleDict()).param_groups
    assert [id(parameter) for parameter in group["params"]] == [
        id(parameter) for parameter in student.parameters() if parameter.requires_grad
    ]


@pytest.mark.parametrize("schedule", ["step", "cosine", "one_cycle"])
def test_the_rate_of_biases_follows_the_schedule(schedule: Any) -> None:
    student = Student()
    config = TrainingConfig(epochs=4, schedule=schedule, **PUBLISHED_FCOS)
    optimizer = make_optimizer(config, student, nn.ModuleDict())
    course = make_schedule(config, optimizer, steps_per_epoch=5)
    for _ in range(4 * 5 - 1):
        others, biases = (group["lr"] for group in optimizer.param_groups)
        assert biases == pytest.approx(2 * others)
        optimizer.step()
        course.step()


@pytest.mark.parametrize(("epochs", "drops"), [(12, (8, 11)), (24, (16, 22)), (1, ())])
def test_default_steps_are_those_of_the_usual_schedules(
    epochs: int, drops: tuple[int, ...]
) -> None:
    assert step_epochs(TrainingConfig(epochs=epochs)) == drops


def test_warm_up_is_linear_and_each_step_lowers_the_rate() -> None:
    factor = lr_factor(
        TrainingConfig(epochs=12, warmup_steps=500, warmup_factor=1e-3), steps_per_epoch=100
    )
    assert [factor(step) for step in (0, 250, 500, 799, 800, 1099, 1100)] == pytest.approx(
        [1e-3, 0.5005, 1.0, 1.0, 0.1, 0.1, 0.01]
    )
