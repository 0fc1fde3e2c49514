"""To add a method: its settings in `kdr/config/distill.py`, its file and builder here beside `kdr.py`, one line in `_BUILDERS`.

The builder takes the settings and what `build_methods` passes on; the module follows `Method`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from kdr.config.distill import DistillConfig
from kdr.distill.kdr import build_kdr
from kdr.distill.method import FeatureLevels

_BUILDERS: dict[str, Callable[..., nn.Module]] = {"kdr": build_kdr}


def build_methods(
    distill: DistillConfig,
    *,
    student: FeatureLevels,
    teacher: FeatureLevels,
    seed: int,
    total_steps: int,
    level_std: Mapping[int, float] | None,
) -> nn.ModuleDict:
    """Builds every method that is on.

    Args:
        distill: the settings of all methods.
        student: the student's feature levels.
        teacher: the teacher's feature levels.
        seed: the trial's seed; each module draws its initial weights from (seed, method, module name).
        total_steps: optimiser steps of the whole training.
        level_std: teacher level -> standard deviation of its features; None where `needs_level_std` is False.

    Returns:
        Each a `Method`, by name; empty if distillation is off.

    Raises:
        ConfigError: if settings do not fit the two detectors.
    """
    shared: dict[str, Any] = {
        "student": student,
        "teacher": teacher,
        "seed": seed,
        "total_steps": total_steps,
        "level_std": level_std,
    }
    return nn.ModuleDict({name: _BUILDERS[name](settings, **shared) for name, settings in distill.methods().items()})


def needs_level_std(distill: DistillConfig) -> bool:
    """Whether a method divides by the spread of the teacher's features, which then has to be measured first."""
    return any(settings.normalisation == "teacher_std" for settings in distill.methods().values())
