from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from kdr.report.arm_trials import ArmTrials, logged_arms
from kdr.report.comparison import Comparison, compared, not_paired, unequal_budget, unfinished
from kdr.report.measures import measure_of
from kdr.results.reader import read_log
from tests.conftest import AblationLog

TwoArms = Callable[..., tuple[ArmTrials, ArmTrials]]


@pytest.fixture
def two(ablation_log: AblationLog) -> TwoArms:
    """Writes an arm and the baseline to the log, and reads them back."""

    def write(
        APs: Mapping[int, float] | Sequence[float] = (0.2, 0.4), **options: Any
    ) -> tuple[ArmTrials, ArmTrials]:
        ablation_log.arm("baseline", (0.1, 0.2))
        ablation_log.arm("arm", APs, **options)
        found = logged_arms(read_log(ablation_log.storage), "ablate", (measure_of("AP"),))
        return found.arm("arm"), found.arm("baseline")

    return write


def difference_of(comparison: Comparison) -> float:
    assert comparison.effect is not None
    return comparison.effect.difference


def test_a_difference_is_the_arm_minus_the_reference(two: TwoArms) -> None:
    arm, baseline = two()
    assert difference_of(compared(arm, baseline, "AP")) == pytest.approx(0.15)
    assert difference_of(compared(baseline, arm, "AP")) == pytest.approx(-0.15)


def test_an_arm_without_a_common_seed_has_no_effect(two: TwoArms) -> None:
    comparison = compared(*two(APs={7: 0.3}), "AP")
    assert (comparison.effect, comparison.same_trials) == (None, False)
    assert comparison.notes == (
        "arm: seed 7 left out of the comparison, because baseline has no result.",
        "arm: seeds 0, 1 left out of the comparison, because arm has no result.",
    )


def test_arms_with_equal_batches_and_budgets_are_paired(two: TwoArms) -> None:
    arm, baseline = two()
    assert (unequal_budget(arm, baseline), not_paired(arm, baseline), list(unfinished(arm))) == (
        None,
        None,
        [],
    )


@pytest.mark.parametrize("setting", [{"data.num_train": 64}, {"training.batch_size": 8}])
def test_settings_that_change_batches_explain_why_arms_are_not_paired(
    two: TwoArms, setting: dict[str, Any]
) -> None:
    [path] = setting
    assert (
        not_paired(*two(changes=setting, batch="x"))
        == f"arm: not paired, because {path} differs; compared as independent trials (Welch)."
    )


def test_another_setting_does_not_explain_it(two: TwoArms) -> None:
    why = not_paired(*two(changes={"distill.kdr.weight": 9.0}, batch="x"))
    assert why is not None
    assert why.startswith(
        "arm: the pairing is broken. For seeds 0, 1 its first batch differs from that of baseline, "
        "and no setting"
    )
