import itertools

import numpy as np
import pytest

from kdr.report.ablation_table import AblationTable, ablation_table
from kdr.report.tables.ablation_grid import data_grid, reading_grid
from kdr.report.tables.grid import Cell, Grid
from kdr.results.reader import read_log
from tests.conftest import AblationLog

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]


def table(log: AblationLog, *metrics: str, **options: bool) -> AblationTable:
    return ablation_table(read_log(log.storage, log.study), log.study, metrics, **options)


def column(grid: Grid, name: str) -> list[Cell]:
    return [row[grid.columns.index(name)] for row in grid.rows]


@pytest.fixture
def arms(ablation_log: AblationLog) -> AblationLog:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    ablation_log.arm("wild", [0.33, 0.29, 0.315, 0.325, 0.3])
    return ablation_log


def test_people_read_percent_points_rounded_by_the_spread(arms: AblationLog) -> None:
    grid = reading_grid(table(arms))
    assert grid.columns == (
        "arm",
        "n",
        "AP (%)",
        "difference",
        "95 % interval",
        "p",
        "sign-flip p",
        "result",
    )
    assert grid.rows == (
        ("baseline", "5/5", "30.6 ± 1.0", "", "", "", "", "reference"),
        ("better", "5/5", "32.6 ± 1.1", "+2.0", "[1.8, 2.2]", "<0.001", "0.062", "helps"),
        (
            "wild",
            "5/5",
            "31.2 ± 1.7",
            "+0.6",
            "[-1.6, 2.8]",
            "0.493",
            "0.562",
            "undecided (43 more seeds)",
        ),
    )
    assert grid.notes[0].startswith("AP in percent, as in papers (39.8 is 0.398 in the log)")
    assert "arm minus baseline, paired by seed" in grid.notes[1]
    assert "Holm-adjusted over 2 comparisons" in grid.notes[2]
    assert "within ±0.5 points" in grid.notes[2]


def test_only_decided_rows_are_bold(arms: AblationLog) -> None:
    assert reading_grid(table(arms)).bold == {(1, 3), (1, 7)}


def test_other_metrics_are_described_and_not_tested(arms: AblationLog) -> None:
    grid = reading_grid(table(arms, "AP", "AP50", "s/epoch"))
    assert grid.columns[8:] == ("AP50 (%)", "AP50 difference", "s/epoch")
    assert grid.rows[1][8:] == ("52.6 ± 1.1", "+2.0 [1.8, 2.2]", "12.0 ± 1.6")
    untested = reading_grid(table(arms, "s/epoch"))
    assert untested.columns == ("arm", "n", "s/epoch")
    assert untested.bold == frozenset()


def test_programs_get_every_number_in_full_with_the_keys(arms: AblationLog) -> None:
    found = table(arms)
    grid, effect = data_grid(found), found.rows[1].effect_on("AP")
    assert effect is not None
    assert effect.interval is not None
    assert effect.p is not None
    better = dict(zip(grid.columns, grid.rows[1], strict=True))
    assert better["AP (%) difference"] == pytest.approx(100 * effect.difference, abs=0)
    assert (better["p"], better["p adjusted"]) == (effect.p, 2 * effect.p)
    assert (better["AP (%) low"], better["AP (%) high"]) == tuple(
        100 * bound for bound in effect.interval
    )
    assert better["keys"] == " ".join(f"better-{seed}" for seed in range(5))
    assert column(grid, "kind") == ["reference", "arm", "arm"]


@pytest.mark.parametrize(
    ("values", "seeds", "word"),
    [
        ([0.302], 1, "undecided (one seed)"),
        ([0.25, 0.26, 0.255], 3, "undecided (no spread)"),
        ([0.304, 0.3141, 0.30895], 3, "helps, less than the margin"),
        ([0.301, 0.3110001, 0.306], 3, "helps, less than the margin"),
    ],
)
def test_untested_and_small_effects_have_their_own_words(
    ablation_log: AblationLog, values: list[float], seeds: int, word: str
) -> None:
    ablation_log.ablation["seeds"] = list(range(seeds))
    ablation_log.arm("baseline", [0.30, 0.31, 0.305][:seeds])
    ablation_log.arm("arm", values)
    assert column(reading_grid(table(ablation_log)), "result")[1] == word


def test_declared_and_unequal_arms_are_marked(arms: AblationLog) -> None:
    arms.ablation["contrast"] = "better"
    arms.arm("baseline", BASE)
    arms.arm("better", BETTER, changes={"training.epochs": 6})
    grid = reading_grid(table(arms, allow_unequal=True))
    assert column(grid, "arm") == ["baseline", "better † *"]
    assert [note[:2] for note in grid.notes[3:5]] == ["†:", "*:"]
    assert grid.notes[5].startswith("better: unequal budget, 6 epochs")


def test_same_trials_and_missing_results_have_their_own_words(arms: AblationLog) -> None:
    arms.arm("copy", BASE, keys="baseline")
    arms.arm("dead", [0.1], event="failed")
    assert column(reading_grid(table(arms)), "result")[3:] == ["same trials", "no result"]


def test_effects_of_a_factorial_come_below_a_rule(ablation_log: AblationLog) -> None:
    ablation_log.ablation |= {
        "design": "factorial",
        "factors": {name: {"on": {"distill.kdr.weight": 1.0}} for name in ("links", "mask")},
    }
    generator = np.random.default_rng(0)
    for links, mask in itertools.product(("baseline", "on"), repeat=2):
        values = generator.normal(0.3 + 0.05 * (links == "on"), 0.003, 5).tolist()
        ablation_log.arm(
            f"{links}-{mask}" if (links, mask) != ("baseline",) * 2 else "baseline",
            values,
            levels={"links": links, "mask": mask},
        )
    grid = reading_grid(table(ablation_log))
    assert grid.rules == {4}
    assert (grid.rows[4][0], grid.rows[4][1], grid.rows[4][-1]) == (
        "links: on - baseline",
        "5",
        "helps",
    )
    assert column(grid, "difference")[:4] == [""] * 4
    data = data_grid(table(ablation_log))
    assert column(data, "kind") == ["reference", "arm", "arm", "arm", "effect", "effect", "effect"]
    assert column(data, "links")[:4] == ["baseline", "baseline", "on", "on"]
