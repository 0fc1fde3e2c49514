"""Early stopping across sessions: a scheduler with a past decides as if it had seen it itself."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler

from kdr.config.search import Asha, EarlyStopping, Median
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.early_stopping import StudyScheduler, make_scheduler
from tests.run.tune_stand_ins import FakeTuneTrial, report_of

MAX_EPOCHS = 8
ASHA = EarlyStopping(asha=Asha(grace_epochs=1, reduction=2))
MEDIAN = EarlyStopping(median=Median(grace_epochs=2, min_trials=2))
RULES = [ASHA, EarlyStopping(asha=Asha(grace_epochs=2, reduction=3)), MEDIAN, EarlyStopping()]
Curves = Mapping[str, Mapping[int, float]]


def scheduler_of(stop_early: EarlyStopping, past: Curves | None = None) -> StudyScheduler:
    scheduler = make_scheduler(
        stop_early, metric="AP", max_epochs=MAX_EPOCHS, past=(past or {}).items()
    )
    assert isinstance(scheduler, StudyScheduler)
    return scheduler


def tune_trial(key: str, trial_id: str = "any") -> FakeTuneTrial:
    """What a scheduler sees of one of Tune's trials."""
    launched = LaunchedTrial(key, config="{}", data_id="data", teacher_id=None)
    return FakeTuneTrial(trial_id, launched.as_config())


def result_of(epoch: int, value: float | None) -> Mapping[str, object]:
    return {**report_of(epoch, value).as_result(), "training_iteration": 1}


def run_trial(
    scheduler: StudyScheduler,
    key: str,
    curve: Mapping[int, float | None],
    *,
    max_epochs: int = MAX_EPOCHS,
) -> int:
    """Runs a trial along its curve as Tune does; returns the epoch at which it ended."""
    trial = tune_trial(key)
    scheduler.on_trial_add(None, trial)
    for epoch, value in curve.items():
        result = result_of(epoch, value)
        ends = epoch == max_epochs
        if ends or scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
            scheduler.on_trial_complete(None, trial, result)
            return epoch
    return max(curve)


def curve_to(final: float, epochs: int = MAX_EPOCHS) -> dict[int, float]:
    return {epoch: final * epoch / MAX_EPOCHS for epoch in range(1, epochs + 1)}


curves = st.lists(
    st.lists(st.floats(0, 1), min_size=MAX_EPOCHS, max_size=MAX_EPOCHS).map(
        lambda values: dict(enumerate(values, 1))
    ),
    min_size=1,
    max_size=8,
)


@given(st.sampled_from(RULES), curves, curves)
def test_a_resumed_scheduler_decides_as_one_that_saw_the_same_results(
    stop_early: EarlyStopping, before: list[dict[int, float]], after: list[dict[int, float]]
) -> None:
    continued, past = scheduler_of(stop_early), {}
    for number, curve in enumerate(before):
        reached = run_trial(continued, f"past {number}", curve)
        past[f"past {number}"] = {
            epoch: value for epoch, value in curve.items() if epoch <= reached
        }
    resumed = scheduler_of(stop_early, past)
    for number, curve in enumerate(after):
        assert run_trial(resumed, f"new {number}", curve) == run_trial(
            continued, f"new {number}", curve
        )


@given(st.sampled_from([ASHA, MEDIAN]), curves, st.integers(1, MAX_EPOCHS - 1))
def test_a_trial_that_resumes_after_a_kill_is_the_same_trial_to_the_rule(
    stop_early: EarlyStopping, others: list[dict[int, float]], cut_at: int
) -> None:
    """Without the key, a rung would count it twice, and compare it with itself."""
    past = {f"past {number}": curve for number, curve in enumerate(others)}
    curve = curve_to(0.9)
    first = {epoch: value for epoch, value in curve.items() if epoch <= cut_at}
    if run_trial(scheduler_of(stop_early, past), "cut off", curve) <= cut_at:
        return  # stopped before it could be killed
    uncut = scheduler_of(stop_early, past)
    run_trial(uncut, "cut off", first)
    trial_ends = run_trial(
        uncut, "cut off", {epoch: value for epoch, value in curve.items() if epoch > cut_at}
    )
    resumed = scheduler_of(stop_early, past | {"cut off": first})
    again_from_the_checkpoint = {epoch: value for epoch, value in curve.items() if epoch >= cut_at}
    assert run_trial(resumed, "cut off", again_from_the_checkpoint) == trial_ends


def test_asha_stops_the_worse_half_at_its_rungs() -> None:
    scheduler = scheduler_of(ASHA)
    assert run_trial(scheduler, "good", curve_to(0.8)) == MAX_EPOCHS
    assert run_trial(scheduler, "bad", curve_to(0.1)) == 1
    assert run_trial(scheduler, "late", {1: 0.8, 2: 0.05, 3: 0.9}) == 2
    assert run_trial(scheduler, "better", curve_to(0.9)) == MAX_EPOCHS


def test_a_resumed_asha_stops_what_a_fresh_one_would_let_through() -> None:
    past = {f"past {number}": curve_to(0.5 + number / 10) for number in range(4)}
    assert run_trial(scheduler_of(ASHA), "bad", curve_to(0.1)) == MAX_EPOCHS
    assert run_trial(scheduler_of(ASHA, past), "bad", curve_to(0.1)) == 1


def test_median_stops_after_its_grace_and_with_enough_trials() -> None:
    scheduler = scheduler_of(MEDIAN)
    assert run_trial(scheduler, "first", curve_to(0.8)) == MAX_EPOCHS
    assert run_trial(scheduler, "too early to tell", curve_to(0.1)) == MAX_EPOCHS
    assert run_trial(scheduler, "third", curve_to(0.9)) == MAX_EPOCHS
    assert run_trial(scheduler, "bad", curve_to(0.01)) == 2


def test_no_rule_stops_nothing() -> None:
    past = {f"past {number}": curve_to(0.9) for number in range(9)}
    assert run_trial(scheduler_of(EarlyStopping(), past), "bad", curve_to(0.0)) == MAX_EPOCHS


@pytest.mark.parametrize("stop_early", [ASHA, MEDIAN], ids=["asha", "median"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_epochs_without_evaluation_are_skipped(
    stop_early: EarlyStopping, value: float | None
) -> None:
    scheduler = scheduler_of(stop_early)
    for number in range(4):
        curve: dict[int, float | None] = {1: value, 2: 0.5, 3: value, 4: 0.6}
        assert run_trial(scheduler, f"trial {number}", curve, max_epochs=99) == 4
    assert run_trial(scheduler, "bad", {1: value, 2: 0.01}) == 2
    failed = tune_trial("failed")
    scheduler.on_trial_add(None, failed)
    scheduler.on_trial_complete(None, failed, result_of(5, value))
    assert run_trial(scheduler, "bad too", {1: value, 2: 0.01, 3: 0.9}) == 2


def test_a_trial_continues_after_a_result_without_a_report_or_metric() -> None:
    scheduler, trial = scheduler_of(ASHA), tune_trial("a")
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, {"done": False}) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial, result_of(1, None)) == TrialScheduler.CONTINUE


def test_repeated_epochs_of_a_retried_trial_are_not_judged_twice() -> None:
    scheduler = scheduler_of(ASHA)
    first, trial = tune_trial("a", "1"), tune_trial("b", "2")
    for started in (first, trial):
        scheduler.on_trial_add(None, started)
        assert (
            scheduler.on_trial_result(None, started, result_of(1, 0.5)) == TrialScheduler.CONTINUE
        )
    scheduler.on_trial_error(None, trial)
    scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, trial, result_of(1, 0.1)) == TrialScheduler.CONTINUE
    assert scheduler.on_trial_result(None, trial, result_of(2, 0.6)) == TrialScheduler.CONTINUE


def test_a_trial_removed_before_it_starts_leaves_nothing() -> None:
    scheduler, trial = scheduler_of(ASHA), tune_trial("a")
    scheduler.on_trial_add(None, trial)
    scheduler.on_trial_remove(None, trial)
    assert run_trial(scheduler, "a", curve_to(0.1)) == MAX_EPOCHS


@pytest.mark.parametrize("grace_epochs", [MAX_EPOCHS, 99])
def test_a_grace_of_all_epochs_stops_nothing(grace_epochs: int) -> None:
    scheduler = scheduler_of(EarlyStopping(asha=Asha(grace_epochs=grace_epochs)))
    assert [run_trial(scheduler, str(value), curve_to(value)) for value in (0.9, 0.1, 0.0)] == [
        MAX_EPOCHS
    ] * 3


def test_a_trial_longer_than_expected_is_not_stopped_for_its_length() -> None:
    scheduler = scheduler_of(ASHA)
    assert (
        run_trial(
            scheduler,
            "long",
            dict.fromkeys(range(1, 2 * MAX_EPOCHS + 1), 0.5),
            max_epochs=2 * MAX_EPOCHS,
        )
        == 2 * MAX_EPOCHS
    )


def test_the_scheduler_declares_no_metric_so_that_tune_refuses_no_result() -> None:
    assert scheduler_of(ASHA).metric is None
