"""What an actor reports, and that Tune carries it unharmed."""

import math
import pickle

import pytest
from ray.tune.utils import flatten_dict

from kdr.run.trial_report import Reached, TrialReport
from tests.run.tune_stand_ins import epoch_of, report_of


def test_the_best_epoch_is_kept_and_the_metrics_are_those_of_the_last_evaluation() -> None:
    reached = Reached()
    assert not any(reached.columns().values())
    for epoch, metrics in enumerate([{"AP": 0.0}, {"AP": 0.3, "AP50": 0.5}, {"AP": 0.2}, None], 1):
        reached = reached.after(epoch_of(epoch, metrics))
    assert (reached.epoch, reached.seconds) == (4, 44.0)
    assert (reached.best_epoch, reached.best_AP) == (2, 0.3)
    assert reached.metrics["AP"] == 0.2
    assert reached.metrics["AP50"] is None


@pytest.mark.parametrize("report", [report_of(3, 0.0), report_of(3, 0.5, failed="bad_data")])
def test_a_report_survives_tune_which_flattens_results_and_sends_them(report: TrialReport) -> None:
    result = flatten_dict({**report.as_result(), "config": {"added": "by Tune"}})
    assert TrialReport.of_result(pickle.loads(pickle.dumps(result))) == report


def test_rays_schedulers_find_the_epoch_and_every_metric_by_name() -> None:
    result = report_of(3, 0.25).as_result()
    assert (result["epoch"], result["AP"], result["done"]) == (3, 0.25, False)
    assert isinstance(result["APs"], float)
    assert math.isnan(result["APs"])


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_metric_without_a_finite_value_has_none(value: float | None) -> None:
    assert report_of(1, value).value("AP") is None


def test_a_failed_trial_has_no_result_whatever_it_had_reached() -> None:
    assert report_of(3, 0.5).value("AP") == 0.5
    assert report_of(3, 0.5, failed="non_finite_loss").value("AP") is None
    assert report_of(3, 0.5, failed="non_finite_loss").as_result()["done"] is True


@pytest.mark.parametrize("result", [None, {}, {"trial_id": "a", "done": False}])
def test_before_its_first_report_a_trial_has_none(result: dict[str, object] | None) -> None:
    assert TrialReport.of_result(result) is None
