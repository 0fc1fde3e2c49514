from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from kdr.report.ranking import RankedTrial, ranking
from kdr.report.search_views import Fidelity, fidelity, search_view, thinned
from kdr.results.reader import read_log
from kdr.results.schema import EpochRow, TrialEvent
from kdr.results.writer import LogWriter
from tests.conftest import ExampleLog

WEIGHT = "distill.kdr.weight"
LINKS = "distill.kdr.review_links"
ATTENTION = "distill.kdr.attention"
SEARCH = {
    "parameters": {
        WEIGHT: {"float": [0.1, 50], "log": True},
        LINKS: {"subset": ["P4->P3", "P5->P4"]},
        ATTENTION: {"choice": ["none", "both"], "when": {LINKS: "not empty"}},
    }
}


def trials(log: ExampleLog) -> tuple[RankedTrial, ...]:
    return ranking(read_log(log.storage), log.study)


def test_each_setting_is_an_axis_of_its_kind_over_completed_and_stopped_trials(
    example_log: ExampleLog,
) -> None:
    example_log.trial(
        "a", parameters={WEIGHT: 10.0, LINKS: ["P4->P3", "P5->P4"], ATTENTION: "both"}, AP=0.3
    )
    example_log.trial("b", parameters={WEIGHT: 0.1, LINKS: []}, AP=0.2)
    example_log.trial(
        "early",
        parameters={WEIGHT: 1.0, LINKS: ["P4->P3"], ATTENTION: "none"},
        event="stopped_early",
        epoch=1,
    )
    example_log.trial("broken", parameters={WEIGHT: 5.0}, event="failed", AP=None, epoch=0)
    found = search_view(trials(example_log), "AP", SEARCH)
    weight, links, attention = found.axes
    assert ([trial.key for trial in found.trials], found.num_trials) == (["a", "b", "early"], 3)
    assert (weight.kind, weight.values, weight.is_log) == ("number", (10.0, 0.1, 1.0), True)
    assert [weight.position(index) for index in range(3)] == pytest.approx([1.0, 0.0, 0.5])
    assert (links.kind, links.values) == ("members", (2.0, 0.0, 1.0))
    assert (attention.kind, attention.names, attention.values) == (
        "choice",
        ("none", "both"),
        (1.0, None, 0.0),
    )
    assert attention.position(1) is None


def test_a_setting_with_one_value_is_in_the_middle(example_log: ExampleLog) -> None:
    example_log.trial("a", parameters={WEIGHT: 3.0})
    [axis] = search_view(trials(example_log), "AP", SEARCH).axes
    assert axis.position(0) == 0.5


def test_too_many_trials_are_thinned_to_the_best_half_and_an_even_sample(
    example_log: ExampleLog,
) -> None:
    for number in range(12):
        example_log.trial(f"trial-{number:02}", AP=1 - number / 20)
    kept = [trial.name for trial in thinned(trials(example_log), 6)]
    assert kept == ["trial-00", "trial-01", "trial-02", "trial-03", "trial-07", "trial-11"]
    found = search_view(trials(example_log), "AP", SEARCH, most=6)
    assert (len(found.trials), found.num_trials) == (6, 12)


def write_curves(log: ExampleLog, values: Sequence[Sequence[float]]) -> None:
    """Writes completed trials with the given AP at each epoch, [trials, epochs]."""
    for number, row in enumerate(values):
        log.trial(f"trial-{number}", epoch=0, AP=None, event="started")
        key = f"trial-{number}"
        with LogWriter(log.storage, log.study) as writer:
            for epoch, value in enumerate(row, start=1):
                writer.epoch(
                    EpochRow(study=log.study, key=key, attempt=1, epoch=epoch, step=1, AP=value)
                )
            writer.event(
                TrialEvent(
                    study=log.study,
                    key=key,
                    event="completed",
                    config="{}",
                    time=log.tick(),
                    epoch=len(row),
                    AP=row[-1],
                )
            )


def fidelity_of(example_log: ExampleLog, early_epoch: int) -> Fidelity:
    log = read_log(example_log.storage)
    found = fidelity(log, ranking(log, "example"), "AP", early_epoch=early_epoch)
    assert found is not None
    return found


def test_correlations_are_scipys_with_ties_and_none_where_all_are_equal(
    example_log: ExampleLog,
) -> None:
    values = np.random.default_rng(0).normal(0.3, 0.05, (7, 4)).round(2)
    values[:, 1] = 0.2
    write_curves(example_log, values.tolist())
    found = fidelity_of(example_log, early_epoch=1)
    assert (found.last_epoch, found.num_trials, found.epochs, found.early_epoch) == (
        4,
        7,
        (1, 2, 3),
        1,
    )
    expected = [stats.spearmanr(values[:, epoch], values[:, 3]).statistic for epoch in (0, 2)]
    assert [found.correlations[0], found.correlations[2]] == pytest.approx(expected)
    assert found.correlations[1] is None
    assert found.at_early_epoch == found.correlations[0]
    assert sorted(found.points) == [
        (f"trial-{number}", values[number, 0], values[number, 3]) for number in range(7)
    ]


def test_trials_of_another_length_are_left_out_of_the_correlation(example_log: ExampleLog) -> None:
    write_curves(example_log, [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4], [0.3, 0.4, 0.5], [0.1, 0.9]])
    found = fidelity_of(example_log, early_epoch=99)
    assert (found.num_trials, found.last_epoch, found.correlations, found.early_epoch) == (
        3,
        3,
        (1.0, 1.0),
        1,
    )


@pytest.mark.parametrize("values", [[[0.1, 0.2]] * 2, [[0.1]] * 3, []])
def test_too_few_trials_have_no_correlation(
    example_log: ExampleLog, values: list[list[float]]
) -> None:
    write_curves(example_log, values)
    log = read_log(example_log.storage)
    assert fidelity(log, ranking(log, "example"), "AP") is None
