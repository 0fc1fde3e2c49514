import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.errors import ConfigError
from kdr.report.settings_table import SettingsRow, SettingsTable, settings_table
from kdr.results.reader import read_log
from tests.conftest import ExampleLog

WEIGHT, LINKS = "distill.kdr.weight", "distill.kdr.review_links"


def table(example_log: ExampleLog, *by: str, metric: str = "AP") -> SettingsTable:
    return settings_table(read_log(example_log.storage), example_log.study, by, metric)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_mean_and_spread_are_numpys(values: list[float]) -> None:
    row = SettingsRow((), tuple(values), tuple("k" for _ in values))
    assert (row.mean, row.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-12)


def test_trials_are_grouped_by_settings_with_their_keys(example_log: ExampleLog) -> None:
    for key, weight, AP in (("a", 1.0, 0.1), ("b", 1.0, 0.3), ("c", 5.0, 0.4)):
        example_log.trial(key, parameters={WEIGHT: weight}, AP=AP)
    found = table(example_log, WEIGHT)
    assert [(row.settings, row.keys) for row in found.rows] == [
        ((5.0,), ("c",)),
        ((1.0,), ("a", "b")),
    ]
    columns, cells = found.cells()
    assert columns == [WEIGHT, "n", "mean AP", "sd", "min", "max"]
    assert cells == [
        [5.0, 1, 0.4, None, 0.4, 0.4],
        [1.0, 2, pytest.approx(0.2), pytest.approx(0.2 / 2**0.5), 0.1, 0.3],
    ]


def test_a_subset_is_one_value_in_any_order(example_log: ExampleLog) -> None:
    example_log.trial("a", parameters={LINKS: ["P4->P3", "P5->P4"]})
    example_log.trial("b", parameters={LINKS: ["P5->P4", "P4->P3"]})
    example_log.trial("c", parameters={LINKS: []})
    assert {row.settings[0]: row.n for row in table(example_log, LINKS).rows} == {
        '["P4->P3", "P5->P4"]': 2,
        "[]": 1,
    }


def test_stopped_and_failed_trials_are_counted_in_a_note_and_not_averaged(
    example_log: ExampleLog,
) -> None:
    example_log.trial("a", AP=0.2)
    example_log.trial("b", AP=0.9, event="stopped_early", epoch=1)
    example_log.trial("c", AP=0.9, event="failed")
    example_log.trial("d", AP=None)
    example_log.trial("teacher", AP=0.9, role="teacher")
    found = table(example_log, WEIGHT)
    assert [row.values for row in found.rows] == [(0.2,)]
    assert found.notes[0] == "Not in the table: 1 completed without AP, 1 failed, 1 stopped early."


def test_unequal_epochs_are_refused_unless_they_are_a_column(example_log: ExampleLog) -> None:
    example_log.trial("a")
    example_log.trial("b", changes={"training.epochs": 8}, epoch=8)
    with pytest.raises(
        ConfigError,
        match=r"equal training\.epochs, got 1 of 4, 1 of 8 epochs\. Add --by training\.epochs",
    ):
        table(example_log, WEIGHT)
    assert len(table(example_log, WEIGHT, "training.epochs").rows) == 2


@pytest.mark.parametrize(("sampler", "warned"), [("tpe", True), ("random", True), ("grid", False)])
def test_a_note_says_that_a_search_measures_no_effects(
    example_log: ExampleLog, sampler: str, warned: bool
) -> None:
    example_log.content["search"]["sampler"] = sampler
    example_log.trial("a")
    notes = table(example_log, WEIGHT).notes
    assert (
        any(f"from a search ({sampler})" in note and "not effects" in note for note in notes)
        == warned
    )


def test_several_commits_and_data_versions_are_noted(example_log: ExampleLog) -> None:
    example_log.content["search"]["sampler"] = "grid"
    example_log.trial("a", commit="c1", data_id="d1")
    example_log.trial("b", commit="c1", dirty=True, data_id="d2")
    assert table(example_log, WEIGHT).notes == (
        "The trials come from 2 commits: c1, c1 (modified).",
        "The trials come from 2 data versions: d1, d2.",
    )


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("review_links", r"Did you mean distill.kdr.review_links\?"),
        ("distill.kdr.wieght", r"Did you mean distill.kdr.weight"),
        ("xyz", r"Settings: data.aspect_ratio_grouping"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_names(
    example_log: ExampleLog, path: str, hint: str
) -> None:
    example_log.trial("a")
    with pytest.raises(
        ConfigError, match=f"--by: must be a setting of the trials, got '{path}'. {hint}"
    ):
        table(example_log, path)
