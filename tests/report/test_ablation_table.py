import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from kdr.errors import ConfigError
from kdr.report.ablation_table import AblationRow, AblationTable, ablation_table
from kdr.report.effects import Effect, Verdict
from kdr.results.reader import read_log
from tests.conftest import AblationLog, ExampleLog

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]
CLOSE = [0.3005, 0.3100, 0.3052, 0.3197, 0.2951]
WILD = [0.330, 0.290, 0.315, 0.325, 0.300]


def table(log: AblationLog, *metrics: str, **options: bool) -> AblationTable:
    return ablation_table(read_log(log.storage, log.study), log.study, metrics, **options)


def words(found: AblationTable) -> dict[str, str]:
    return {row.name: row.verdict.word for row in found.rows if row.verdict}


def effect_of(row: AblationRow) -> Effect:
    effect = row.effect_on("AP")
    assert effect is not None
    return effect


def verdict_of(row: AblationRow) -> Verdict:
    assert row.verdict is not None
    return row.verdict


def test_a_row_has_mean_spread_and_the_paired_difference_of_scipy(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    baseline, better = table(ablation_log).rows
    assert (baseline.is_reference, baseline.verdict, baseline.comparisons) == (True, None, {})
    assert (better.num_done, better.num_planned, better.keys) == (
        5,
        5,
        tuple(f"better-{seed}" for seed in range(5)),
    )
    summary, effect = better.summaries["AP"], effect_of(better)
    assert (summary.mean, summary.sd) == pytest.approx((np.mean(BETTER), np.std(BETTER, ddof=1)))
    expected = stats.ttest_rel(BETTER, BASE)
    assert effect.p == pytest.approx(expected.pvalue)
    assert effect.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert effect.sign_flip_p == 2 / 2**5


def test_verdicts_are_adjusted_over_the_whole_family(ablation_log: AblationLog) -> None:
    for name, values in (("baseline", BASE), ("better", BETTER), ("close", CLOSE), ("wild", WILD)):
        ablation_log.arm(name, values)
    found = table(ablation_log)
    assert words(found) == {"better": "helps", "close": "no relevant effect", "wild": "undecided"}
    better, wild, close = (stats.ttest_rel(values, BASE).pvalue for values in (BETTER, WILD, CLOSE))
    assert better < close < wild
    assert found.family == 3
    assert [verdict_of(row).p_adjusted for row in found.rows[1:]] == pytest.approx(
        [3 * better, 2 * close, max(2 * close, wild)]
    )


def test_a_declared_contrast_is_not_adjusted_and_not_counted(ablation_log: AblationLog) -> None:
    ablation_log.ablation["contrast"] = "better"
    for name, values in (("baseline", BASE), ("better", BETTER), ("wild", WILD), ("close", CLOSE)):
        ablation_log.arm(name, values)
    found = table(ablation_log)
    [better] = [row for row in found.rows if row.is_declared]
    assert (better.name, verdict_of(better).p_adjusted) == ("better", effect_of(better).p)
    assert found.family == 2


def test_without_a_margin_nothing_is_irrelevant(ablation_log: AblationLog) -> None:
    del ablation_log.ablation["margin"]
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("close", CLOSE)
    found = table(ablation_log)
    assert words(found) == {"close": "undecided"}
    assert found.notes == (
        "The study declared no margin, so no difference can be called irrelevant.",
    )


def test_a_seed_missing_in_one_arm_is_left_out_of_its_comparison_and_noted(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER[:4])
    ablation_log.arm("better", {4: 0.9}, event="failed", failure_kind="out_of_memory")
    ablation_log.arm("early", BETTER[:3])
    ablation_log.arm("early", {3: 0.9}, event="stopped_early")
    ablation_log.arm("early", {4: None})
    found = table(ablation_log)
    _, better, early = found.rows
    assert (better.num_done, better.num_planned, effect_of(better).n) == (4, 5, 4)
    assert effect_of(better).difference == pytest.approx(np.mean(BETTER[:4]) - np.mean(BASE[:4]))
    assert (early.num_done, early.summaries["AP"].n) == (3, 3)
    assert found.notes == (
        "better: 1 of 5 failed (out_of_memory), seed 4.",
        "early: 1 of 5 stopped early, seed 3.",
        "early: 1 of 5 not started, seed 4.",
        "better: seed 4 left out of the comparison, because better has no result.",
        "early: seeds 3, 4 left out of the comparison, because early has no result.",
    )


def test_an_arm_without_results_is_listed_without_numbers(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("broken", [0.1], event="failed", failure_kind="non_finite_loss")
    found = table(ablation_log)
    _, broken = found.rows
    assert (
        broken.num_done,
        broken.summaries["AP"].mean,
        broken.effect_on("AP"),
        broken.verdict,
    ) == (0, None, None, None)
    assert found.notes[0] == "broken: 1 of 1 failed (non_finite_loss), seed 0."


def test_an_arm_with_the_reference_trials_is_noted_and_not_compared(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("copy", BASE, keys="baseline")
    ablation_log.arm("better", BETTER)
    found = table(ablation_log)
    _, copy, _ = found.rows
    assert (copy.is_same_trials, copy.verdict, copy.num_done) == (True, None, 5)
    assert found.family == 1
    assert found.notes == ("copy: the same trials as baseline.",)


def test_two_arms_with_the_same_trials_are_noted(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    ablation_log.arm("again", BETTER, keys="better")
    found = table(ablation_log)
    assert words(found) == {"better": "helps", "again": "helps"}
    assert found.notes == ("again: the same trials as better; both count in the adjustment.",)


@pytest.mark.parametrize(
    ("num_seeds", "shift", "note"),
    [
        (1, 0.01, ()),
        (
            3,
            0.0,
            ("arm: the same difference for every seed; without spread there is no test.",),
        ),
        (
            3,
            0.0625,
            ("arm: the same difference for every seed; without spread there is no test.",),
        ),
    ],
)
def test_one_seed_or_no_spread_is_undecided(
    ablation_log: AblationLog, num_seeds: int, shift: float, note: tuple[str, ...]
) -> None:
    ablation_log.ablation["seeds"] = list(range(num_seeds))
    ablation_log.arm("baseline", BASE[:num_seeds])
    ablation_log.arm("arm", [value + shift for value in BASE[:num_seeds]])
    found = table(ablation_log)
    assert words(found) == {"arm": "undecided"}
    assert verdict_of(found.rows[1]).more_seeds is None
    assert found.notes == note


@pytest.mark.parametrize(
    ("columns", "changes", "difference"),
    [
        (
            {},
            {"training.epochs": 6},
            "6 epochs, 3072 images, 1 worker instead of 4 epochs, 2048 images, 1 worker",
        ),
        (
            {"images_seen": 9999},
            {},
            "4 epochs, 9999 images, 1 worker instead of 4 epochs, 2048 images, 1 worker",
        ),
    ],
)
def test_unequal_budgets_are_refused_or_marked(
    ablation_log: AblationLog, columns: dict[str, Any], changes: dict[str, Any], difference: str
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("long", BETTER, changes=changes, epoch_columns=columns)
    with pytest.raises(
        ConfigError,
        match=(
            f"^long: must have the epochs, images and workers of baseline, got {difference}. .* "
            "mark the others with --allow-unequal"
        ),
    ):
        table(ablation_log)
    found = table(ablation_log, allow_unequal=True)
    assert (found.rows[1].unequal, found.notes) == (
        difference,
        (f"long: unequal budget, {difference}.",),
    )


def test_arms_with_different_batches_are_not_paired_and_noted(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("small", BETTER, changes={"data.image_size_px": 64}, batch="small")
    found = table(ablation_log)
    effect = effect_of(found.rows[1])
    assert not effect.paired
    assert effect.p == pytest.approx(stats.ttest_ind(BETTER, BASE, equal_var=False).pvalue)
    assert found.notes == (
        (
            "small: not paired, because data.image_size_px differs; compared as independent trials "
            "(Welch)."
        ),
    )


def test_a_broken_pairing_is_found(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("odd", BETTER[:3])
    ablation_log.arm("odd", {3: 0.342, 4: 0.313}, batch="other")
    found = table(ablation_log)
    assert not effect_of(found.rows[1]).paired
    assert found.notes[0].startswith(
        "odd: the pairing is broken. For seeds 3, 4 its first batch differs from that of baseline"
    )


def test_a_log_without_batch_hashes_is_paired_by_seed(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE, epoch_columns={"first_batch_hash": None})
    ablation_log.arm("better", BETTER)
    assert effect_of(table(ablation_log).rows[1]).paired


def test_results_from_several_commits_and_data_versions_are_noted(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER, commit="c2", dirty=True, data_id="d2")
    assert table(ablation_log).notes == (
        "The trials come from 2 commits: c1, c2 (modified).",
        "The trials come from 2 data versions: d1, d2.",
    )


def test_only_the_declared_metric_is_tested(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    found = table(ablation_log, "AP50", "AP", "s/epoch")
    assert found.tested is not None
    assert (found.tested.name, [measure.name for measure in found.measures]) == (
        "AP",
        ["AP50", "AP", "s/epoch"],
    )
    assert found.rows[1].summaries["s/epoch"].values == {seed: 10.0 + seed for seed in range(5)}
    other = table(ablation_log, "AP50")
    assert other.tested is not None
    assert (other.tested.name, other.margin) == ("AP50", None)
    assert other.notes == (
        "The study declared AP; neither a test of AP50 nor a margin for it was declared "
        "beforehand.",
    )
    assert table(ablation_log, "s/epoch").tested is None


def test_arms_of_an_earlier_version_of_the_study_are_left_out(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", [0.1, 0.2], keys=None)
    ablation_log.arm("gone", [0.1, 0.2])
    ablation_log.ablation["seeds"] = [0, 1, 2]
    ablation_log.arm("baseline", BASE[:3])
    ablation_log.arm("better", BETTER[:3])
    assert [(row.name, row.num_done) for row in table(ablation_log).rows] == [
        ("baseline", 3),
        ("better", 3),
    ]


def test_a_study_without_an_ablation_is_refused(example_log: ExampleLog) -> None:
    example_log.trial("a")
    with pytest.raises(
        ConfigError, match="example is not an ablation, so its table shows one metric"
    ):
        ablation_table(read_log(example_log.storage), "example")


LEVELS = {
    "links": {"all": {"distill.kdr.weight": 1.0}},
    "mask": {"on": {"distill.kdr.weight": 2.0}},
}


def factorial(log: AblationLog, cells: Mapping[tuple[str, str], Sequence[float | None]]) -> None:
    log.ablation |= {"design": "factorial", "factors": LEVELS}
    for (links, mask), values in cells.items():
        name = (
            ", ".join(f"{f}={v}" for f, v in (("links", links), ("mask", mask)) if v != "baseline")
            or "baseline"
        )
        log.arm(name, values, levels={"links": links, "mask": mask})


def test_a_factorial_has_effects_instead_of_comparisons(ablation_log: AblationLog) -> None:
    generator = np.random.default_rng(3)
    cells = {
        cell: generator.normal(0.3, 0.01, 5).tolist()
        for cell in itertools.product(("baseline", "all"), ("baseline", "on"))
    }
    factorial(ablation_log, cells)
    found = table(ablation_log)
    assert [row.comparisons for row in found.rows] == [{}] * 4
    assert [effect.name for effect in found.effects] == [
        "links: all - baseline",
        "mask: on - baseline",
        "links: all - baseline x mask: on - baseline",
    ]
    mean = {cell: np.mean(values) for cell, values in cells.items()}
    links = (
        mean["all", "on"]
        + mean["all", "baseline"]
        - mean["baseline", "on"]
        - mean["baseline", "baseline"]
    ) / 2
    assert found.effects[0].effect.difference == pytest.approx(links)
    assert (found.effects[0].effect.df, found.family) == (4 * 5 - 5 - 3, 3)


def test_a_factorial_uses_the_seeds_that_every_arm_has(ablation_log: AblationLog) -> None:
    cells: dict[tuple[str, str], list[float | None]] = {
        cell: [*np.random.default_rng(1).normal(0.3, 0.01, 4).tolist(), None]
        for cell in itertools.product(("baseline", "all"), ["on"])
    }
    cells |= {
        cell: np.random.default_rng(2).normal(0.3, 0.01, 5).tolist()
        for cell in itertools.product(("baseline", "all"), ["baseline"])
    }
    factorial(ablation_log, cells)
    found = table(ablation_log)
    assert {effect.effect.n for effect in found.effects} == {4}
    assert "Effects use only seeds that every arm has completed; left out: 4." in found.notes


def test_effects_that_need_missing_cells_are_named(ablation_log: AblationLog) -> None:
    cells = {
        cell: np.random.default_rng(1).normal(0.3, 0.01, 5).tolist()
        for cell in itertools.product(("baseline", "all"), ["baseline"])
    }
    factorial(ablation_log, cells | {("baseline", "on"): BASE})
    found = table(ablation_log)
    assert found.effects == ()
    assert found.notes[-1].startswith(
        "Cannot be estimated without the left-out arms: links: all - baseline, mask: on - baseline"
    )
