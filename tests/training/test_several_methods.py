"""Every method trains, alone and with others, and resumes bit-identically."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from kdr.config.distill import DistillConfig
from kdr.config.trial import Trial
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]

METHODS = list(DistillConfig.model_fields)


@pytest.mark.slow
def test_two_methods_in_two_lines_train_together(make: Make, run: Run) -> None:
    (epoch,) = run(make({"distill": {"kdr": {}, "pkd": {}}, "training.epochs": 1}))
    assert epoch.step == 2
    assert {"kdr.foreground", "kdr.background", "pkd.feature"} < epoch.losses.keys()
    assert epoch.weighted_losses["pkd.feature"] == pytest.approx(10 * epoch.losses["pkd.feature"])
    assert all(norm > 0 for norm in epoch.gradient_norms.values())
    assert set(epoch.gradient_norms) == {"detection", "kdr", "pkd", "total"}


@pytest.mark.slow
def test_all_methods_together_continue_after_an_epoch_to_the_same_bits(
    make: Make, run: Run, storage: Storage, shared: SharedParts
) -> None:
    everything: dict[str, Any] = {"distill": {name: {} for name in METHODS}}
    trial = make(everything)
    undisturbed = run(trial)
    assert {name.split(".")[0] for name in undisturbed[-1].losses if "." in name} == set(METHODS)
    assert all(
        math.isfinite(value) for epoch in undisturbed for value in epoch.weighted_losses.values()
    )
    (storage.trial(trial.key) / "student.pt").unlink()
    interrupted = fit(trial, storage=storage, shared=shared)
    next(interrupted)
    interrupted.close()
    resumed = list(fit(trial, storage=storage, shared=SharedParts(storage)))
    assert [epoch.losses for epoch in resumed] == [epoch.losses for epoch in undisturbed]
    assert resumed[-1].evaluation == undisturbed[-1].evaluation
