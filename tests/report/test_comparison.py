import pytest

from kdr.report.arm_trials import logged_arms
from kdr.report.comparison import compared, not_paired, unequal_budget, unfinished
from kdr.report.measures import measure_of
from kdr.results.reader import read_log


@pytest.fixture
def two(ablation_log):
    """Writes two arms with some differences, and gives them as the log has them."""

    def write(APs=(0.2, 0.4), baseline=(0.1, 0.2), **options):
        ablation_log.arm("baseline", baseline)
        ablation_log.arm("arm", APs, **options)
        found = logged_arms(read_log(ablation_log.storage), "ablate", (measure_of("AP"),))
        return found.arm("arm"), found.arm("baseline")

    return write


def test_a_difference_is_the_arm_minus_the_reference(two):
    arm, baseline = two()
    assert compared(arm, baseline, "AP").effect.difference == pytest.approx(0.15)
    assert compared(baseline, arm, "AP").effect.difference == pytest.approx(-0.15)


def test_an_arm_without_a_common_seed_has_no_effect(two):
    comparison = compared(*two(APs={7: 0.3}), "AP")
    assert (comparison.effect, comparison.same_trials) == (None, False)
    assert comparison.notes == (
        "arm: seed 7 left out of its comparison, without a result of baseline.",
        "arm: seeds 0, 1 left out of its comparison, without a result of arm.",
    )


def test_arms_that_are_alike_are_paired_with_equal_budgets(two):
    arm, baseline = two()
    assert (unequal_budget(arm, baseline), not_paired(arm, baseline), list(unfinished(arm))) == (
        None,
        None,
        [],
    )


@pytest.mark.parametrize("setting", [{"data.num_train": 64}, {"training.batch_size": 8}])
def test_settings_that_change_batches_explain_why_arms_are_no_pairs(two, setting):
    [path] = setting
    assert (
        not_paired(*two(changes=setting, batch="x"))
        == f"arm: not paired, since it differs in {path}; compared as independent trials (Welch)."
    )


def test_another_setting_does_not_explain_it(two):
    why = not_paired(*two(changes={"distill.kdr.weight": 9.0}, batch="x"))
    assert why.startswith(
        "arm: the pairing is broken. With seeds 0, 1 its first batch is not that of baseline, "
        "though no setting"
    )
