"""The weight of a method from its gradient: `calibrate` makes that a share of the detector's own
before the first step.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import nn

from kdr.distill.methods import Weight
from kdr.errors import TrialFailure
from kdr.randomness import address
from kdr.training.distilled_student import gradient_norms, root_sum_of_squares
from kdr.training.training_state import TrainingState

CALIBRATION_BATCHES = 8
"""Batches over which gradients are compared: the first of the trial."""


def calibrate(state: TrainingState, seed: int) -> None:
    """Measures the weights that settings give as `calibrate`, on the untrained student; nothing
    else changes.

    The weight of a method is rho |g_detection| / |g_method|, with g the gradients at the student's
    FPN outputs over the first batches of all ranks, the method's at weight 1 without its ramp.

    Args:
        state: a trial before its first step.
        seed: the trial's seed.

    Raises:
        TrialFailure: of kind `not_calibrated`, if a method or the detector has no gradient, or one
            that is not finite.
    """
    methods = state.model.methods
    ratios = {
        name: weight.calibrate
        for name, weight in methods.weights.items()
        if weight.calibrate is not None
    }
    norms = _gradient_norms(state, seed) if ratios else {}
    for name, ratio in ratios.items():
        value = ratio * norms["detection"] / norms[name] if norms[name] > 0 else math.nan
        if not 0 < value < math.inf:
            raise TrialFailure(
                "not_calibrated",
                f"distill.{name}.calibrate: needs finite gradients above 0 at the FPN outputs "
                f"before the first step, got {norms[name]:g} of {name} and {norms['detection']:g} "
                "of the detector. Set weight instead",
            )
        methods.weights[name] = replace(methods.weights[name], value=value)


def _gradient_norms(state: TrainingState, seed: int) -> dict[str, float]:
    """Norms of the gradients at the FPN outputs, over all calibration batches together; of each
    method at weight 1.
    """
    methods = state.model.methods
    # without the scaling of a training step, small gradients would be 0
    if state.precision == torch.float16:
        state = replace(state, precision=torch.float32)
    with _left_as_it_was(state.model, state.device):
        torch.manual_seed(address(seed, "calibration", state.ranks.rank))
        state.model.train()
        weights, methods.weights = methods.weights, {name: Weight(1.0) for name in methods}
        try:
            of_passes = [
                gradient_norms(state.losses(one, 0, model=state.model), state.ranks, one.weight)
                for batch in itertools.islice(state.training.epoch(1), CALIBRATION_BATCHES)
                for one in state.passes(batch)
            ]
        finally:
            methods.weights = weights
    return root_sum_of_squares(of_passes)


@contextmanager
def _left_as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Gives the buffers of a model (running statistics) and torch's generators back as they
    were.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
