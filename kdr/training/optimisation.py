"""Optimisers, learning-rate schedules, gradient clipping and precision."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from kdr.config.training import TrainingConfig

AUTOCAST_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(
    config: TrainingConfig, student: nn.Module, methods: nn.ModuleDict
) -> torch.optim.Optimizer:
    """Builds the optimiser, with separate groups for the student and the methods.

    Norms, biases and scalars of the methods have no weight decay (`kdr.distill.method`). All of the
    student's parameters have it, as in torchvision's own training, unless the settings give its
    biases a different rate or decay.
    """
    # by dimensions: norms and biases have one, KDR's zetas none
    decayed = [parameter for parameter in methods.parameters() if parameter.ndim > 1]
    undecayed = [parameter for parameter in methods.parameters() if parameter.ndim <= 1]
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    # a separate group only if the settings ask for it
    biases = (
        _biases(student)
        if (config.bias_lr_factor, config.bias_weight_decay) != (None, None)
        else []
    )
    bias_ids = {id(parameter) for parameter in biases}  # `in` on tensors would compare their values
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in bias_ids]}
    ]
    groups += [{"params": biases, **_of_biases(config)}] if biases else []
    groups += [{"params": decayed}] if decayed else []
    groups += [{"params": undecayed, "weight_decay": 0.0}] if undecayed else []
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)


def make_schedule(
    config: TrainingConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Builds the learning-rate schedule, to be advanced once per optimiser step."""
    total_steps = config.epochs * steps_per_epoch
    if config.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, [group["lr"] for group in optimizer.param_groups], total_steps
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(config, steps_per_epoch))


def _biases(student: nn.Module) -> list[nn.Parameter]:
    """Returns the trained biases of convolutions and linear layers, without those of norms."""
    layers = (module for module in student.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    biases = [
        parameter
        for layer in layers
        for name, parameter in layer.named_parameters()
        if name == "bias"
    ]
    return [bias for bias in biases if bias.requires_grad]


def _of_biases(config: TrainingConfig) -> dict[str, float]:
    """Returns the biases' learning rate and decay, by torch's names."""
    decay = config.weight_decay if config.bias_weight_decay is None else config.bias_weight_decay
    return {
        "lr": config.lr * (1.0 if config.bias_lr_factor is None else config.bias_lr_factor),
        "weight_decay": decay,
    }


def lr_factor(config: TrainingConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Returns a function from steps, counted from 0, to a factor of the learning rate.

    The factor is linear warm-up times the schedule.
    """
    total_steps = config.epochs * steps_per_epoch
    warmup_steps = (
        min(500, total_steps // 20) if config.warmup_steps is None else config.warmup_steps
    )
    drops = [epoch * steps_per_epoch for epoch in step_epochs(config)]

    # a function of the step alone, so that a resumed schedule needs no history
    def factor(step: int) -> float:
        ramp = (
            min(1.0, config.warmup_factor + (1 - config.warmup_factor) * step / warmup_steps)
            if warmup_steps
            else 1.0
        )
        if config.schedule == "step":
            return float(ramp * config.step_factor ** sum(step >= drop for drop in drops))
        if config.schedule == "cosine":
            return ramp * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total_steps)))
        return ramp

    return factor


def step_epochs(config: TrainingConfig) -> tuple[int, ...]:
    """Returns the epochs after which the `step` schedule lowers the rate.

    As set, or 2/3 and 11/12 of the epochs: 8 and 11 of 12, mmdetection's 1x schedule.
    """
    if config.step_epochs is not None:
        return config.step_epochs
    # a set, without the last epoch: in a short training run both may round to the same epoch, or to
    # the last, after which a drop has no effect
    return tuple(
        sorted(
            {max(1, round(config.epochs * share)) for share in (2 / 3, 11 / 12)} - {config.epochs}
        )
    )


def clip_gradients(
    parameter_sets: Iterable[Iterable[nn.Parameter]], max_norm: float | None
) -> None:
    """Limits the gradient norm of each set of parameters separately.

    Clipped together, large gradients of the methods' own parameters would scale down the student's.
    """
    if max_norm is not None:
        for parameters in parameter_sets:
            if trained := [parameter for parameter in parameters if parameter.grad is not None]:
                torch.nn.utils.clip_grad_norm_(trained, max_norm)
