import itertools

import numpy as np
import pytest
from scipy import stats

from kdr.errors import ConfigError
from kdr.report.ablation_table import ablation_table
from kdr.results.reader import read_log

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]
ALIKE = [0.3005, 0.3100, 0.3052, 0.3197, 0.2951]
WILD = [0.330, 0.290, 0.315, 0.325, 0.300]


def table(log, *metrics, **options):
    return ablation_table(read_log(log.storage, log.study), log.study, metrics, **options)


def words(found):
    return {row.name: row.verdict.word for row in found.rows if row.verdict}


def test_a_row_has_mean_spread_and_the_paired_difference_of_scipy(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    baseline, better = table(ablation_log).rows
    assert (baseline.is_reference, baseline.verdict, baseline.comparisons) == (True, None, {})
    assert (better.num_done, better.num_planned, better.keys) == (
        5,
        5,
        tuple(f"better-{seed}" for seed in range(5)),
    )
    summary, effect = better.summaries["AP"], better.effect_on("AP")
    assert (summary.mean, summary.sd) == pytest.approx((np.mean(BETTER), np.std(BETTER, ddof=1)))
    expected = stats.ttest_rel(BETTER, BASE)
    assert effect.p == pytest.approx(expected.pvalue)
    assert effect.interval == pytest.approx(tuple(expected.confidence_interval()))
    assert effect.sign_flip_p == 2 / 2**5


def test_words_are_of_the_whole_family(ablation_log):
    for name, values in (("baseline", BASE), ("better", BETTER), ("alike", ALIKE), ("wild", WILD)):
        ablation_log.arm(name, values)
    found = table(ablation_log)
    assert words(found) == {"better": "helps", "alike": "no relevant effect", "wild": "undecided"}
    better, wild, alike = (stats.ttest_rel(values, BASE).pvalue for values in (BETTER, WILD, ALIKE))
    assert better < alike < wild
    assert found.family == 3
    assert [row.verdict.p_adjusted for row in found.rows[1:]] == pytest.approx(
        [3 * better, 2 * alike, max(2 * alike, wild)]
    )


def test_a_declared_contrast_is_not_adjusted_and_not_counted(ablation_log):
    ablation_log.ablation["contrast"] = "better"
    for name, values in (("baseline", BASE), ("better", BETTER), ("wild", WILD), ("alike", ALIKE)):
        ablation_log.arm(name, values)
    found = table(ablation_log)
    [better] = [row for row in found.rows if row.is_declared]
    assert (better.name, better.verdict.p_adjusted) == ("better", better.effect_on("AP").p)
    assert found.family == 2


def test_without_a_margin_nothing_is_irrelevant(ablation_log):
    del ablation_log.ablation["margin"]
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("alike", ALIKE)
    found = table(ablation_log)
    assert words(found) == {"alike": "undecided"}
    assert found.notes == (
        "The study declared no margin, so that no difference can be called irrelevant.",
    )


def test_a_seed_missing_in_one_arm_is_left_out_of_its_comparison_and_said(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER[:4])
    ablation_log.arm("better", {4: 0.9}, event="failed", failure_kind="out_of_memory")
    ablation_log.arm("early", BETTER[:3])
    ablation_log.arm("early", {3: 0.9}, event="stopped_early")
    ablation_log.arm("early", {4: None})
    _, better, early = (found := table(ablation_log)).rows
    assert (better.num_done, better.num_planned, better.effect_on("AP").n) == (4, 5, 4)
    assert better.effect_on("AP").difference == pytest.approx(
        np.mean(BETTER[:4]) - np.mean(BASE[:4])
    )
    assert (early.num_done, early.summaries["AP"].n) == (3, 3)
    assert found.notes == (
        "better: 1 of 5 failed (out_of_memory), seed 4.",
        "early: 1 of 5 stopped early, seed 3.",
        "early: 1 of 5 not begun, seed 4.",
        "better: seed 4 left out of its comparison, without a result of better.",
        "early: seeds 3, 4 left out of its comparison, without a result of early.",
    )


def test_an_arm_without_results_is_there_without_numbers(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("broken", [0.1], event="failed", failure_kind="non_finite_loss")
    _, broken = (found := table(ablation_log)).rows
    assert (
        broken.num_done,
        broken.summaries["AP"].mean,
        broken.effect_on("AP"),
        broken.verdict,
    ) == (0, None, None, None)
    assert found.notes[0] == "broken: 1 of 1 failed (non_finite_loss), seed 0."


def test_arms_that_are_the_same_trials_are_told_and_not_compared(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("copy", BASE, keys="baseline")
    ablation_log.arm("better", BETTER)
    _, copy, _ = (found := table(ablation_log)).rows
    assert (copy.is_same_trials, copy.verdict, copy.num_done) == (True, None, 5)
    assert found.family == 1
    assert found.notes == ("copy: the same trials as baseline.",)


def test_two_arms_that_are_the_same_trials_are_told(ablation_log):
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
            ("arm: the same difference with every seed; without spread nothing can be tested.",),
        ),
        (
            3,
            0.0625,
            ("arm: the same difference with every seed; without spread nothing can be tested.",),
        ),
    ],
)
def test_one_seed_or_no_spread_is_undecided(ablation_log, num_seeds, shift, note):
    ablation_log.ablation["seeds"] = list(range(num_seeds))
    ablation_log.arm("baseline", BASE[:num_seeds])
    ablation_log.arm("arm", [value + shift for value in BASE[:num_seeds]])
    found = table(ablation_log)
    assert words(found) == {"arm": "undecided"}
    assert found.rows[1].verdict.more_seeds is None
    assert found.notes == note


@pytest.mark.parametrize(
    ("columns", "changes", "difference"),
    [
        (
            {},
            {"training.epochs": 6},
            "6 epochs, 3072 images, 1 worker against 4 epochs, 2048 images, 1 worker",
        ),
        (
            {"images_seen": 9999},
            {},
            "4 epochs, 9999 images, 1 worker against 4 epochs, 2048 images, 1 worker",
        ),
    ],
)
def test_unequal_budgets_are_refused_or_marked(ablation_log, columns, changes, difference):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("long", BETTER, changes=changes, epoch_columns=columns)
    with pytest.raises(
        ConfigError,
        match=(
            f"^long: must have the epochs, images and workers of baseline, got {difference}. .* "
            "add --allow-unequal"
        ),
    ):
        table(ablation_log)
    found = table(ablation_log, allow_unequal=True)
    assert (found.rows[1].unequal, found.notes) == (
        difference,
        (f"long: unequal budget, {difference}.",),
    )


def test_a_changed_batch_is_no_pair_and_said(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("small", BETTER, changes={"data.image_size_px": 64}, batch="small")
    found = table(ablation_log)
    effect = found.rows[1].effect_on("AP")
    assert (effect.paired, effect.p) == (
        False,
        pytest.approx(stats.ttest_ind(BETTER, BASE, equal_var=False).pvalue),
    )
    assert found.notes == (
        (
            "small: not paired, since it differs in data.image_size_px; compared as independent "
            "trials (Welch)."
        ),
    )


def test_a_broken_pairing_is_found(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("odd", BETTER[:3])
    ablation_log.arm("odd", {3: 0.342, 4: 0.313}, batch="other")
    found = table(ablation_log)
    assert not found.rows[1].effect_on("AP").paired
    assert found.notes[0].startswith(
        "odd: the pairing is broken. With seeds 3, 4 its first batch is not that of baseline"
    )


def test_a_log_without_batch_hashes_is_paired_by_seed(ablation_log):
    ablation_log.arm("baseline", BASE, epoch_columns={"first_batch_hash": None})
    ablation_log.arm("better", BETTER)
    assert table(ablation_log).rows[1].effect_on("AP").paired


def test_results_of_other_code_and_data_are_told(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER, commit="c2", dirty=True, data_id="d2")
    assert table(ablation_log).notes == (
        "The trials come from 2 commits of the code: c1, c2 with changes.",
        "The trials come from 2 versions of the data: d1, d2.",
    )


def test_only_the_declared_metric_is_tested(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    found = table(ablation_log, "AP50", "AP", "s/epoch")
    assert (found.tested.name, [measure.name for measure in found.measures]) == (
        "AP",
        ["AP50", "AP", "s/epoch"],
    )
    assert found.rows[1].summaries["s/epoch"].values == {seed: 10.0 + seed for seed in range(5)}
    other = table(ablation_log, "AP50")
    assert (other.tested.name, other.margin) == ("AP50", None)
    assert other.notes == (
        "The study declared AP. A test of AP50 was not declared beforehand, nor a margin for it.",
    )
    assert table(ablation_log, "s/epoch").tested is None


def test_arms_of_an_earlier_version_of_the_study_are_left_out(ablation_log):
    ablation_log.arm("baseline", [0.1, 0.2], keys=None)
    ablation_log.arm("gone", [0.1, 0.2])
    ablation_log.ablation["seeds"] = [0, 1, 2]
    ablation_log.arm("baseline", BASE[:3])
    ablation_log.arm("better", BETTER[:3])
    assert [(row.name, row.num_done) for row in table(ablation_log).rows] == [
        ("baseline", 3),
        ("better", 3),
    ]


def test_a_study_without_an_ablation_is_refused(example_log):
    example_log.trial("a")
    with pytest.raises(ConfigError, match="example: must be an ablation, got a study without one"):
        ablation_table(read_log(example_log.storage), "example")


LEVELS = {
    "links": {"all": {"distill.kdr.weight": 1.0}},
    "mask": {"on": {"distill.kdr.weight": 2.0}},
}


def factorial(log, cells):
    log.ablation |= {"design": "factorial", "factors": LEVELS}
    for (links, mask), values in cells.items():
        name = (
            ", ".join(f"{f}={v}" for f, v in (("links", links), ("mask", mask)) if v != "baseline")
            or "baseline"
        )
        log.arm(name, values, levels={"links": links, "mask": mask})


def test_a_factorial_has_effects_instead_of_comparisons(ablation_log):
    generator = np.random.default_rng(3)
    cells = {
        cell: generator.normal(0.3, 0.01, 5)
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
    mean = {cell: values.mean() for cell, values in cells.items()}
    links = (
        mean["all", "on"]
        + mean["all", "baseline"]
        - mean["baseline", "on"]
        - mean["baseline", "baseline"]
    ) / 2
    assert found.effects[0].effect.difference == pytest.approx(links)
    assert (found.effects[0].effect.df, found.family) == (4 * 5 - 5 - 3, 3)


def test_a_factorial_takes_the_seeds_that_every_arm_has(ablation_log):
    cells = {
        cell: [*np.random.default_rng(1).normal(0.3, 0.01, 4), None]
        for cell in itertools.product(("baseline", "all"), ["on"])
    }
    cells |= {
        cell: np.random.default_rng(2).normal(0.3, 0.01, 5)
        for cell in itertools.product(("baseline", "all"), ["baseline"])
    }
    factorial(ablation_log, cells)
    found = table(ablation_log)
    assert {effect.effect.n for effect in found.effects} == {4}
    assert "Effects: of the seeds that every arm has completed; left out: 4." in found.notes


def test_cells_left_out_of_a_factorial_leave_effects_open(ablation_log):
    cells = {
        cell: np.random.default_rng(1).normal(0.3, 0.01, 5)
        for cell in itertools.product(("baseline", "all"), ["baseline"])
    }
    factorial(ablation_log, cells | {("baseline", "on"): BASE})
    found = table(ablation_log)
    assert found.effects == ()
    assert found.notes[-1].startswith(
        "Effects that the arms left out leave open: links: all - baseline, mask: on - baseline"
    )
