"""All methods of a trial, each times its weight.

To add a method: its settings (`kdr/config/distill.py` has their place), its file and builder here beside `kdr.py`, one line in
`_BUILDERS`. The builder takes the settings and the `Setup`; the module is a `Method`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from kdr.config.distill import DistillConfig
from kdr.distill.kdr import build_kdr
from kdr.distill.method import Method, Outputs, Setup, Term

_BUILDERS: dict[str, Callable[[Any, Setup], Method]] = {"kdr": build_kdr}


@dataclass(frozen=True)
class Weight:
    """The weight of one method in the course of a training: lambda(t) = lambda clip(t / t_ramp, 0, 1)."""

    value: float
    """lambda."""
    ramp_steps: float = 0.0
    """t_ramp; 0 for none."""

    def at(self, step: int) -> float:
        """lambda(t) after `step` optimiser steps."""
        return self.value * (min(max(step / self.ramp_steps, 0.0), 1.0) if self.ramp_steps else 1.0)


class Methods(nn.ModuleDict):
    """The methods of a trial by name; their losses add up.

    Args:
        methods: by name, in the order in which their losses are added; empty for plain training.
        weights: of each.
    """

    def __init__(self, methods: Mapping[str, Method], weights: Mapping[str, Weight]) -> None:
        super().__init__(methods)
        self.weights = dict(weights)

    def forward(
        self,
        student: Outputs,
        teacher: Outputs,
        *,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        batch_size: tuple[int, int],
        step: int,
    ) -> dict[str, list[Term]]:
        """Returns each method's terms, times its weight at this step. See `Method`."""
        call: dict[str, Any] = {"boxes": boxes, "image_sizes": image_sizes, "batch_size": batch_size, "step": step}
        return {name: self._weighted(name, method(student, teacher, **call), step) for name, method in self.items()}

    def logged_numbers(self) -> dict[str, Tensor]:
        """Further scalars for the log, by `method.number`."""
        return {
            f"{name}.{number}": value
            for name, method in self.items()
            for number, value in cast(Method, method).logged_numbers().items()
        }

    def _weighted(self, name: str, terms: list[Term], step: int) -> list[Term]:
        weight = self.weights[name].at(step)
        return [term._replace(coefficient=weight * term.coefficient) for term in terms]


def build_methods(distill: DistillConfig, setup: Setup) -> Methods:
    """Builds every method that is on.

    Raises:
        ConfigError: if settings do not fit the two detectors.
    """
    on = distill.methods()
    return Methods(
        {name: _BUILDERS[name](settings, setup) for name, settings in on.items()},
        {name: Weight(settings.weight, settings.ramp_steps(setup.total_steps)) for name, settings in on.items()},
    )
