import math
from collections.abc import Sequence

import numpy as np
import pytest

from kdr.report.arm_trials import logged_arms
from kdr.report.learning_curves import (
    BEST,
    Band,
    CurveGroup,
    LearningCurves,
    arm_curves,
    epoch_values,
    trial_curves,
)
from kdr.report.measures import measure_of
from kdr.report.ranking import ranking
from kdr.results.reader import read_log
from kdr.results.schema import EpochRow
from kdr.results.writer import LogWriter
from tests.conftest import AblationLog, ExampleLog

BASE = [0.30, 0.31, 0.32]


def curves_of(log: AblationLog, drawn: Sequence[str] = ("baseline", "better")) -> LearningCurves:
    found = read_log(log.storage, log.study)
    return arm_curves(
        found, logged_arms(found, log.study, (measure_of("AP"),)).arms, "AP", drawn=drawn
    )


def band_of(group: CurveGroup) -> Band:
    assert group.band is not None
    return group.band


def test_every_seed_is_a_curve_and_the_band_is_numpys_mean_and_spread(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", [0.40, 0.44, 0.42])
    baseline, better = curves_of(ablation_log).groups
    assert [(curve.name, curve.epochs) for curve in baseline.curves] == [
        (f"seed {seed}", (1, 2, 3, 4)) for seed in range(3)
    ]
    # the log's APs rise in proportion to the epoch
    values = np.outer([0.40, 0.44, 0.42], [0.25, 0.5, 0.75, 1.0])
    assert (band_of(better).epochs, band_of(better).num_seeds) == ((1, 2, 3, 4), 3)
    assert band_of(better).means == pytest.approx(values.mean(axis=0), abs=1e-12)
    assert band_of(better).sds == pytest.approx(values.std(axis=0, ddof=1), abs=1e-12)


def test_a_seed_that_failed_is_a_curve_but_not_in_the_band(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("baseline", {3: 0.9}, event="failed")
    [group] = curves_of(ablation_log, drawn=["baseline"]).groups
    assert [curve.state for curve in group.curves] == ["completed"] * 3 + ["failed"]
    assert band_of(group).num_seeds == 3
    assert band_of(group).means[-1] == pytest.approx(np.mean(BASE))


def test_one_seed_has_no_band(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE[:1])
    [group] = curves_of(ablation_log, drawn=["baseline"]).groups
    assert (len(group.curves), group.band) == (1, None)


def test_before_any_seed_is_completed_the_band_covers_the_running_ones(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE, event="started")
    [group] = curves_of(ablation_log, drawn=["baseline"]).groups
    assert band_of(group).num_seeds == 3


def test_arms_keep_the_requested_order_and_the_others_are_counted(
    ablation_log: AblationLog,
) -> None:
    for name in ("baseline", "better", "worse"):
        ablation_log.arm(name, BASE)
    found = curves_of(ablation_log, drawn=["worse", "baseline"])
    assert [group.name for group in found.groups] == ["worse", "baseline"]
    assert found.left_out == "1 of 3 arms are not drawn; the table lists all."


def test_epochs_without_a_value_are_skipped(example_log: ExampleLog) -> None:
    example_log.trial("a", AP=0.4)
    with LogWriter(example_log.storage, "example") as writer:
        for epoch, value in ((5, None), (6, math.nan)):
            writer.epoch(
                EpochRow(study="example", key="a", attempt=1, epoch=epoch, step=1, AP=value)
            )
    found = epoch_values(read_log(example_log.storage), ["a", "unknown"], "AP")
    assert list(found) == ["a"]
    assert found["a"][0] == (1, 2, 3, 4)
    assert found["a"][1] == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_trials_are_grouped_by_how_they_ended_with_the_best_apart(example_log: ExampleLog) -> None:
    example_log.trial("low", AP=0.1)
    example_log.trial("high", AP=0.3)
    example_log.trial("early", AP=0.2, event="stopped_early", epoch=2)
    example_log.trial("nothing", AP=None, event="failed", epoch=0)
    log = read_log(example_log.storage)
    found = trial_curves(log, ranking(log, "example"), "AP", most=10)
    assert {group.name: [curve.name for curve in group.curves] for group in found.groups} == {
        BEST: ["high"],
        "completed": ["low"],
        "stopped early": ["early"],
    }
    assert (found.num_points, found.left_out) == (10, None)


def test_trials_beyond_the_limit_are_counted(example_log: ExampleLog) -> None:
    for number in range(4):
        example_log.trial(f"trial-{number}", AP=0.1 * (number + 1))
    log = read_log(example_log.storage)
    found = trial_curves(log, ranking(log, "example"), "AP", most=3)
    assert [curve.name for curve in found.curves] == ["trial-3", "trial-2", "trial-1"]
    assert found.left_out == "1 of 4 trials are not drawn: those with the lowest AP."


def test_an_empty_log_has_no_curves(example_log: ExampleLog) -> None:
    log = read_log(example_log.storage)
    assert trial_curves(log, (), "AP", most=3).num_points == 0
    assert epoch_values(log, [], "AP") == {}
