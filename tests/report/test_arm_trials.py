import pytest

from kdr.config.ablation import Ablation
from kdr.errors import ConfigError
from kdr.report.arm_trials import Budget, LoggedArms, ablation_of, logged_arms
from kdr.report.measures import measure_of
from kdr.results.reader import read_log
from tests.conftest import AblationLog, ExampleLog


def arms_of(log: AblationLog, *metrics: str) -> LoggedArms:
    return logged_arms(
        read_log(log.storage, log.study), log.study, tuple(map(measure_of, metrics or ("AP",)))
    )


def margin_of(ablation: Ablation | None) -> float | None:
    assert ablation is not None
    return ablation.margin


def test_arms_come_in_the_order_of_the_study_with_their_trials_by_seed(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", {3: 0.3, 1: 0.1}, levels={"mask": "baseline"})
    ablation_log.arm(
        "mask=on", {1: 0.2}, levels={"mask": "on"}, event="failed", failure_kind="bad_data"
    )
    ablation_log.arm("mask=off", {1: None}, levels={"mask": "off"})
    found = arms_of(ablation_log)
    assert [(arm.name, list(arm.trials), arm.levels) for arm in found.arms] == [
        ("baseline", [1, 3], {"mask": "baseline"}),
        ("mask=on", [1], {"mask": "on"}),
        ("mask=off", [1], {"mask": "off"}),
    ]
    assert (found.reference, margin_of(found.ablation)) == ("baseline", 0.005)
    assert found.arm("baseline").values("AP") == {1: 0.1, 3: 0.3}
    assert [arm.trials[1].why_not for arm in found.arms[1:]] == ["failed (bad_data)", "not started"]
    assert found.arm("mask=on").values("AP") == {}
    with pytest.raises(
        ConfigError,
        match=r"ablate has no arm 'mask'. Arms: baseline, mask=on, mask=off",
    ):
        found.arm("mask")


def test_the_reference_of_add_one_in_is_the_arm_with_nothing(ablation_log: AblationLog) -> None:
    ablation_log.arm("nothing", [0.1])
    ablation_log.arm("+mask", [0.2])
    assert arms_of(ablation_log).reference == "nothing"


def test_the_last_run_defines_the_study(ablation_log: AblationLog, example_log: ExampleLog) -> None:
    assert ablation_of(read_log(ablation_log.storage), "ablate") is None
    ablation_log.arm("baseline", [0.1])
    ablation_log.arm("gone", [0.1])
    assert margin_of(ablation_of(read_log(ablation_log.storage), "ablate")) == 0.005
    ablation_log.ablation["margin"] = 0.01
    ablation_log.arm("baseline", [0.1])
    found = arms_of(ablation_log)
    assert ([arm.name for arm in found.arms], margin_of(found.ablation)) == (["baseline"], 0.01)
    example_log.trial("a")
    assert ablation_of(read_log(example_log.storage), "example") is None


def test_a_budget_is_epochs_images_and_workers(ablation_log: AblationLog) -> None:
    ablation_log.workers = 2
    ablation_log.arm("baseline", [0.1])
    budget = arms_of(ablation_log).arms[0].trials[0].budget
    assert budget == Budget(4, 2048, 2)
    assert not budget.differs_from(Budget(4, None, 2))
    assert all(
        budget.differs_from(other)
        for other in (Budget(5, 2048, 2), Budget(4, 1, 2), Budget(4, 2048, 1))
    )
