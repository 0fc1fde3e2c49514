import pytest

from kdr.report.ablation_table import ablation_table
from kdr.report.arm_trials import logged_arms
from kdr.report.page.review_links import PATH, LinkMap, LinkMean, link_map, link_means
from kdr.report.ranking import ranking
from kdr.results.reader import read_log
from tests.conftest import AblationLog, ExampleLog

ALL = ["P4->P3", "P5->P4", "P6->P5", "P7->P6"]
BASE = [0.300, 0.310, 0.305]


def means(log: ExampleLog) -> tuple[LinkMean, ...]:
    return link_means(ranking(read_log(log.storage), log.study))


def map_of(log: AblationLog) -> LinkMap | None:
    found = read_log(log.storage, log.study)
    table = ablation_table(found, log.study, allow_unequal=True)
    return link_map(table, logged_arms(found, log.study, table.measures))


def test_means_with_and_without_each_link_count_completed_trials_only(
    example_log: ExampleLog,
) -> None:
    example_log.trial("a", parameters={PATH: ["P4->P3"]}, AP=0.2)
    example_log.trial("b", parameters={PATH: ["P4->P3", "P5->P4"]}, AP=0.4)
    example_log.trial("c", parameters={PATH: []}, AP=0.1)
    example_log.trial("d", parameters={PATH: ["P5->P4"]}, AP=0.9, event="stopped_early", epoch=1)
    example_log.trial("e", parameters={}, changes={"distill": {}}, AP=0.9)
    found = {
        mean.link: (mean.means, len(mean.with_it), len(mean.without)) for mean in means(example_log)
    }
    assert list(found) == ["P5->P4", "P4->P3"]
    assert found["P4->P3"][0] == pytest.approx((0.3, 0.1))
    assert found["P5->P4"][0] == pytest.approx((0.4, 0.15))
    assert [counts for _, *counts in found.values()] == [[1, 2], [2, 1]]


def test_links_that_every_trial_has_are_not_shown(example_log: ExampleLog) -> None:
    example_log.trial("a", parameters={PATH: ["P4->P3"]})
    example_log.trial("b", parameters={PATH: ["P4->P3"]})
    assert means(example_log) == ()


def test_arms_that_switch_links_follow_the_reference(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("fine", [0.28, 0.29, 0.284], changes={PATH: ALL[:1]})
    ablation_log.arm("heavy", [0.31, 0.32, 0.32], changes={"distill.kdr.weight": 9.0})
    found = map_of(ablation_log)
    assert found is not None
    assert found.links == ("P7->P6", "P6->P5", "P5->P4", "P4->P3")
    reference, fine = found.arms
    assert (reference.name, reference.links, reference.difference, reference.text) == (
        "baseline",
        (True,) * 4,
        None,
        "reference",
    )
    assert (fine.name, fine.links, fine.changes_more) == (
        "fine",
        (False, False, False, True),
        False,
    )
    assert fine.difference == pytest.approx(-2.0333, abs=1e-3)
    assert fine.word == "hurts"


def test_switching_off_all_links_is_not_another_change_though_attention_is_unused(
    ablation_log: AblationLog,
) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("off", BASE, changes={PATH: []})
    ablation_log.arm("both", BASE, changes={PATH: [], "distill.kdr.weight": 9.0})
    found = map_of(ablation_log)
    assert found is not None
    assert [(arm.name, arm.changes_more) for arm in found.arms] == [
        ("baseline", False),
        ("off", False),
        ("both", True),
    ]


def test_an_ablation_of_other_settings_has_no_map(ablation_log: AblationLog) -> None:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("heavy", BASE, changes={"distill.kdr.weight": 9.0})
    ablation_log.arm("plain", BASE, changes={"distill": {}})
    assert map_of(ablation_log) is None
