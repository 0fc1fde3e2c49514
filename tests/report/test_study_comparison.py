import dataclasses

import pytest
from scipy import stats

from kdr.errors import ConfigError
from kdr.report.ablation_table import AblationTable
from kdr.report.study_comparison import study_comparison
from kdr.report.tables.ablation_grid import reading_grid
from kdr.results.reader import read_log
from tests.conftest import AblationLog, ExampleLog

OLD = [0.300, 0.310, 0.305, 0.320, 0.295]
NEW = [0.321, 0.330, 0.324, 0.342, 0.313]


@pytest.fixture
def new(ablation_log: AblationLog) -> AblationLog:
    return ablation_log


@pytest.fixture
def old(ablation_log: AblationLog) -> AblationLog:
    return dataclasses.replace(ablation_log, study="old", prefix="old-")


def compare(
    new: AblationLog, old: AblationLog | ExampleLog, *metrics: str, **options: bool
) -> AblationTable:
    logs = read_log(new.storage, new.study), read_log(old.storage, old.study)
    return study_comparison(logs, (new.study, old.study), metrics, **options)


def test_arms_of_the_same_name_are_subtracted_seed_by_seed(
    new: AblationLog, old: AblationLog
) -> None:
    new.arm("baseline", NEW)
    new.arm("mine", NEW)
    old.arm("baseline", OLD)
    old.arm("theirs", OLD)
    found = compare(new, old)
    theirs, mine = found.rows
    assert (theirs.name, theirs.is_reference, mine.name) == (
        "old: baseline",
        True,
        "ablate: baseline",
    )
    effect, expected = mine.effect_on("AP"), stats.ttest_rel(NEW, OLD)
    assert effect is not None
    assert effect.difference == pytest.approx(0.02)
    assert effect.p == pytest.approx(expected.pvalue)
    assert mine.verdict is not None
    assert (found.family, mine.verdict.word, found.margin) == (1, "helps", 0.005)
    grid = reading_grid(found)
    assert (
        grid.title
        == "ablate against old: AP (%) by arm, with the difference from the same arm of old"
    )


def test_without_a_common_name_the_references_are_compared(
    new: AblationLog, old: AblationLog
) -> None:
    new.arm("baseline", NEW)
    old.arm("nothing", OLD)
    assert [row.name for row in compare(new, old).rows] == ["old: nothing", "ablate: baseline"]


def test_trials_that_both_studies_use_are_the_same(new: AblationLog, old: AblationLog) -> None:
    new.arm("baseline", NEW)
    old.prefix = ""
    old.arm("baseline", NEW, keys="baseline")
    assert compare(new, old).rows[1].is_same_trials


def test_a_margin_counts_only_if_both_studies_declare_it(
    new: AblationLog, old: AblationLog
) -> None:
    old.ablation = {**old.ablation, "margin": 0.001}
    new.arm("baseline", NEW)
    old.arm("baseline", OLD)
    assert compare(new, old).margin is None


def test_unequal_workers_are_refused_or_marked(new: AblationLog, old: AblationLog) -> None:
    old.workers = 2
    new.arm("baseline", NEW)
    old.arm("baseline", OLD)
    with pytest.raises(
        ConfigError,
        match=(
            r"ablate: baseline: must have .* of the arm of old, got .* 1 worker instead of .* 2"
            r" workers"
        ),
    ):
        compare(new, old)
    assert compare(new, old, allow_unequal=True).rows[1].unequal is not None


def test_a_search_has_no_arms_to_compare(new: AblationLog, example_log: ExampleLog) -> None:
    new.arm("baseline", NEW)
    example_log.trial("a", arm="trial-0001")
    with pytest.raises(
        ConfigError,
        match="--compare: the studies share no arm, and example has no reference",
    ):
        compare(new, example_log)
