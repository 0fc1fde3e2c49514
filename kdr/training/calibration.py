"""Sets a method's weight by its gradient, as a multiple of the detector's own."""

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
"""Number of batches, the trial's first, over which gradients are compared."""


def calibrate(state: TrainingState, seed: int) -> None:
    """Measures the weights of methods with `calibrate`, on the untrained student.

    The weight of a method is rho |g_detection| / |g_method|, with g the gradients at the student's
    FPN outputs over the first batches of all ranks, the method's at weight 1 without its ramp. Only
    the weights change.

    Args:
        state: a trial before its first step.
        seed: the trial's seed.

    Raises:
        TrialFailure: of kind `not_calibrated`, if the gradient of a method or of the detector is 0
            or not finite.
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
        # written so that NaN fails
        if not 0 < value < math.inf:
            raise TrialFailure(
                "not_calibrated",
                f"distill.{name}.calibrate: needs finite, non-zero gradients at the FPN outputs "
                f"before the first step, got {norms[name]:g} of {name} and {norms['detection']:g} "
                f"of the detector. Set distill.{name}.weight instead",
            )
        methods.weights[name] = replace(methods.weights[name], value=value)


def _gradient_norms(state: TrainingState, seed: int) -> dict[str, float]:
    """Returns the norms of gradients at the FPN outputs, each method at weight 1.

    Over all calibration batches and ranks together.
    """
    methods = state.model.methods
    # in fp16, small gradients underflow to 0 without the scaler of a training step
    if state.precision == torch.float16:
        state = replace(state, precision=torch.float32)
    # the unwrapped model: DDP expects a backward pass after each forward pass
    with _restored(state.model, state.device):
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
def _restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restores a model's buffers (running statistics) and torch's generators on exit.

    So a trial with `calibrate` gives the same numbers as one with the measured value as `weight`.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            for buffer, before in buffers:
                buffer.copy_(before)
