"""The methods of a trial, each multiplied by its weight.

To add a method: add its settings to `kdr/config/distill.py`, its file with a `Method` and a builder
next to `kdr.py`, and one line to `_BUILDERS`. The contract tests then run on it
(`tests/distill/test_contract.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from kdr.config.distill import DistillConfig
from kdr.distill.cwd import build_cwd
from kdr.distill.defeat import build_defeat
from kdr.distill.fgd import build_fgd
from kdr.distill.fitnet import build_fitnet
from kdr.distill.frs import build_frs
from kdr.distill.kdr import build_kdr
from kdr.distill.method import Method, Outputs, Setup, Term
from kdr.distill.mgd import build_mgd
from kdr.distill.pkd import build_pkd
from kdr.distill.reviewkd import build_reviewkd

_BUILDERS: dict[str, Callable[[Any, Setup], Method]] = {
    "kdr": build_kdr,
    "fitnet": build_fitnet,
    "reviewkd": build_reviewkd,
    "defeat": build_defeat,
    "fgd": build_fgd,
    "mgd": build_mgd,
    "pkd": build_pkd,
    "cwd": build_cwd,
    "frs": build_frs,
}


@dataclass(frozen=True)
class Weight:
    """The weight of one method at each step: lambda(t) = lambda clip(t / t_ramp, 0, 1)."""

    value: float
    """lambda."""
    ramp_steps: float = 0.0
    """t_ramp; 0 for no ramp."""
    calibrate: float | None = None
    """Ratio of gradients from which `value` is measured before the first step; None if the settings
    give `value`."""

    def at(self, step: int) -> float:
        """Returns lambda(t) after `step` optimiser steps."""
        return self.value * (min(max(step / self.ramp_steps, 0.0), 1.0) if self.ramp_steps else 1.0)


class Methods(nn.ModuleDict):
    """The methods of a trial by name; their losses add up.

    Args:
        methods: by name, in the order in which their losses are added; empty for plain training.
        weights: weight of each method.
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
        share: tuple[int, int] = (0, 1),
    ) -> dict[str, list[Term]]:
        """Returns each method's terms, multiplied by its weight at this step. See `Method`."""
        # the same arguments for all: a method names those it needs and ignores the rest by `**_`
        call: dict[str, Any] = {
            "boxes": boxes,
            "image_sizes": image_sizes,
            "batch_size": batch_size,
        }
        call |= {"step": step, "share": share}
        return {
            name: self._weighted(name, method(student, teacher, **call), step)
            for name, method in self.items()
        }

    def units(self, grids: Sequence[tuple[int, int]], boxes_per_image: float) -> dict[str, float]:
        """Returns the weights in the common unit, ramps aside, by `unit.term.level`. See
        `Method.units`.
        """
        return {
            f"unit.{term}": self.weights[name].value * unit
            for name, method in self.items()
            for term, unit in cast(Method, method).units(grids, boxes_per_image).items()
        }

    def logged_numbers(self) -> dict[str, float]:
        """Returns additional numbers for the log by `method.number`, including measured weights."""
        measured = {
            f"{name}.weight": value for name, value in MeasuredWeights(self).state_dict().items()
        }
        return measured | {
            f"{name}.{number}": float(value)
            for name, method in self.items()
            for number, value in cast(Method, method).logged_numbers().items()
        }

    def _weighted(self, name: str, terms: list[Term], step: int) -> list[Term]:
        weight = self.weights[name].at(step)
        return [term._replace(coefficient=weight * term.coefficient) for term in terms]


class MeasuredWeights:
    """The weights measured by `calibrate`, as a part of a checkpoint.

    A resumed trial must not measure again, because its student is already partly trained.

    Args:
        methods: the methods that hold the weights.
    """

    def __init__(self, methods: Methods) -> None:
        self._methods = methods

    def state_dict(self) -> dict[str, float]:
        """Returns the measured weights by method; {} if the settings give all weights."""
        # read when a checkpoint is written, not when this object is built: `calibrate` runs later
        return {
            name: weight.value
            for name, weight in self._methods.weights.items()
            if weight.calibrate is not None
        }

    def load_state_dict(self, state_dict: dict[str, float], /) -> None:
        """Restores the measured weights."""
        for name, value in state_dict.items():
            self._methods.weights[name] = replace(self._methods.weights[name], value=value)


def build_methods(distill: DistillConfig, setup: Setup) -> Methods:
    """Builds every active method.

    Raises:
        ConfigError: if the settings do not fit the two detectors.
    """
    # in the order of DistillConfig's fields: the order affects the last bits of the summed loss
    on = distill.methods()
    return Methods(
        {name: _BUILDERS[name](settings, setup) for name, settings in on.items()},
        {
            name: Weight(
                settings.weight, settings.ramp_steps(setup.total_steps), settings.calibrate
            )
            for name, settings in on.items()
        },
    )
