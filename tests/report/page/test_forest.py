import pytest

from kdr.report.ablation_table import AblationTable, ablation_table
from kdr.report.page.forest import MOST_ROWS, Forest, forest
from kdr.results.reader import read_log
from tests.conftest import AblationLog

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]


def table(log: AblationLog) -> AblationTable:
    return ablation_table(read_log(log.storage, log.study), log.study, (), allow_unequal=True)


def forest_of(log: AblationLog, most: int = MOST_ROWS) -> Forest:
    found = forest(table(log), most=most)
    assert found is not None
    return found


def test_a_row_has_the_effect_of_the_table_in_percent_points_and_each_seeds_difference(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    found, effect = forest_of(ablation_log), table(ablation_log).rows[1].effect_on("AP")
    [row] = found.rows
    assert effect is not None
    assert effect.interval is not None
    assert (found.reference, found.title) == ("baseline", "AP (%)")
    assert found.margin == pytest.approx(0.5)
    assert (row.name, row.word, row.text) == ("better", "helps", "helps")
    assert row.difference == pytest.approx(100 * effect.difference)
    assert row.interval == pytest.approx(tuple(100 * end for end in effect.interval))
    assert dict(row.of_seeds) == pytest.approx(
        {seed: 100 * (BETTER[seed] - BASE[seed]) for seed in range(5)}
    )


def test_one_seed_has_a_difference_without_an_interval(ablation_log: AblationLog) -> None:
    ablation_log.ablation["seeds"] = [0]
    ablation_log.arm("baseline", BASE[:1])
    ablation_log.arm("better", BETTER[:1])
    [row] = forest_of(ablation_log).rows
    assert (row.interval, row.text) == (None, "undecided (one seed)")


def test_unpaired_trials_have_no_differences_by_seed(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER, batch="other")
    [row] = forest_of(ablation_log).rows
    assert row.of_seeds == ()


def test_a_factorial_shows_its_effects(ablation_log: AblationLog) -> None:
    off = {"off": {"distill.kdr.attention": "none"}}
    ablation_log.ablation |= {
        "design": "factorial",
        "factors": {"attention": off, "links": {"off": {"distill.kdr.weight": 1.0}}},
    }
    for number, (attention, links) in enumerate(
        [("baseline", "baseline"), ("off", "baseline"), ("baseline", "off"), ("off", "off")]
    ):
        name = "baseline" if not number else f"arm-{number}"
        values = [
            value + 0.01 * number + 0.001 * (seed % 2) * number for seed, value in enumerate(BASE)
        ]
        ablation_log.arm(name, values, levels={"attention": attention, "links": links})
    rows = forest_of(ablation_log).rows
    assert [row.name for row in rows] == [
        "attention: off - baseline",
        "links: off - baseline",
        "attention: off - baseline x links: off - baseline",
    ]


def test_only_the_largest_differences_are_kept_in_table_order(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    for name, shift in (("some", 0.02), ("least", 0.001), ("most", -0.03)):
        ablation_log.arm(
            name, [value + shift * (1 + 0.1 * seed) for seed, value in enumerate(BASE)]
        )
    found = forest_of(ablation_log, most=2)
    assert ([row.name for row in found.rows], found.num_left_out) == (["some", "most"], 1)


def test_without_a_completed_trial_there_is_no_forest(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE, event="failed")
    ablation_log.arm("better", BETTER, event="failed")
    assert forest(table(ablation_log)) is None
