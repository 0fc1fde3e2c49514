"""Weights from gradients: they have the set ratio, are measured once, and leave no trace."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdr.config.distill import DistillConfig
from kdr.config.trial import Trial
from kdr.distill.kdr import Kdr
from kdr.distill.methods import Weight
from kdr.errors import TrialFailure
from kdr.storage.layout import Storage
from kdr.training.calibration import CALIBRATION_BATCHES, calibrate
from kdr.training.distilled_student import gradient_norms
from kdr.training.fit import fit
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import Pass, TrainingState, prepare

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]

# padding counted and batch norm in the adapters: running statistics of the method too
CALIBRATED = {
    "distill.kdr.calibrate": 0.4,
    "distill.kdr.ramp": 0,
    "distill.kdr.preset": "kdr-paper",
}


def numbers(epochs: list[EpochMetrics]) -> list[Any]:
    return [
        (epoch.losses, epoch.weighted_losses, epoch.gradient_norms, epoch.evaluation)
        for epoch in epochs
    ]


@pytest.fixture
def state(make: Make, shared: SharedParts) -> TrainingState:
    """A trial before its first step, not calibrated yet."""
    return prepare(make(CALIBRATED), shared, torch.device("cpu"), 0)


def first_norms(state: TrainingState) -> dict[str, float]:
    """Norms over the calibration batches, at the weights that the methods have now."""
    batches = itertools.islice(state.training.epoch(1), CALIBRATION_BATCHES)
    found = [gradient_norms(state.losses(Pass(batch), 0)) for batch in batches]
    return {name: math.hypot(*(norms[name] for norms in found)) for name in found[0]}


@pytest.mark.slow
def test_the_gradient_of_every_method_then_has_the_set_ratio(
    make: Make, shared: SharedParts
) -> None:
    ratios = {name: 0.1 * number for number, name in enumerate(DistillConfig.model_fields, 1)}
    settings = {name: {"calibrate": ratio, "ramp": 0} for name, ratio in ratios.items()}
    state = prepare(make({"distill": settings}), shared, torch.device("cpu"), 0)
    before = first_norms(state)
    calibrate(state, seed=0)
    after = first_norms(state)
    assert after["detection"] == before["detection"]
    assert {name: after[name] / after["detection"] for name in ratios} == pytest.approx(
        ratios, rel=1e-5
    )


@pytest.mark.slow
def test_it_restores_buffers_modes_and_random_state(state: TrainingState) -> None:
    def everything() -> list[Tensor]:
        return [value.clone() for value in state.model.state_dict().values()] + [
            torch.get_rng_state()
        ]

    before = everything()
    calibrate(state, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(before, everything(), strict=True))
    assert state.model.training
    assert all(parameter.grad is None for parameter in state.model.parameters())


@pytest.mark.slow
def test_a_calibrated_trial_is_bit_identical_to_one_with_the_measured_weight(
    make: Make, run: Run
) -> None:
    measured = run(make(CALIBRATED))
    weight = measured[0].extras["kdr.weight"]
    given = run(make(CALIBRATED | {"distill.kdr.calibrate": None, "distill.kdr.weight": weight}))
    assert numbers(measured) == numbers(given)
    assert "kdr.weight" not in given[0].extras
    assert measured[1].extras["kdr.weight"] == weight
    share = measured[1].weighted_losses["kdr.foreground"] / measured[1].losses["kdr.foreground"]
    assert share == pytest.approx(weight * 2 / 3)
    assert measured[1].extras["unit.kdr.foreground.P3"] == pytest.approx(weight * 2 / 3)


@pytest.mark.slow
def test_a_resumed_trial_keeps_its_measured_weight(
    make: Make, run: Run, storage: Storage, shared: SharedParts
) -> None:
    trial = make(CALIBRATED)
    whole = run(trial)
    (storage.trial(trial.key) / "student.pt").unlink()
    interrupted = fit(trial, storage=storage, shared=shared)
    next(interrupted)
    interrupted.close()
    again = list(fit(trial, storage=storage, shared=shared))
    assert numbers(again) == numbers(whole)
    assert [epoch.extras for epoch in again] == [epoch.extras for epoch in whole]


def test_the_trial_key_contains_the_ratio_and_not_the_weight(make: Make) -> None:
    keys = [make(CALIBRATED | {"distill.kdr.weight": weight}).key for weight in (1.0, 2.0)]
    assert keys[0] == keys[1]
    assert keys[0] != make(CALIBRATED | {"distill.kdr.calibrate": 0.5}).key
    assert "calibrate" not in make().config.distill.methods()["kdr"].canonical()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("std", "shown"), [(math.inf, "0"), (math.nan, "nan"), (1e-30, "(inf|nan)")]
)
def test_a_method_without_a_finite_gradient_ends_the_trial(
    state: TrainingState, std: float, shown: str
) -> None:
    kdr = state.model.methods["kdr"]
    assert isinstance(kdr, Kdr)
    kdr.teacher_std = (std,) * 5
    with pytest.raises(
        TrialFailure,
        match=rf"not_calibrated: distill\.kdr\.calibrate: .* non-zero .* got {shown} of kdr and ",
    ):
        calibrate(state, seed=0)


def test_set_weights_are_not_changed(make: Make, shared: SharedParts) -> None:
    state = prepare(make(), shared, torch.device("cpu"), 0)
    weights = dict(state.model.methods.weights)
    calibrate(replace(state, training=None), seed=0)  # type: ignore[arg-type]
    assert state.model.methods.weights == weights
    assert weights["kdr"] == Weight(3.0, weights["kdr"].ramp_steps)
