import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects
import pytest

from kdr.errors import ConfigError
from kdr.report.page.drawing import DARK, LIGHT, coloured
from kdr.report.page.html import Page, page_html
from kdr.report.page.parts import FigureBlock, Section
from kdr.report.tables.grid import Grid
from kdr.results.schema import ArmRow, Event
from kdr.results.sql import query
from kdr.results.writer import LogWriter
from tests.conftest import AblationLog, ExampleLog
from tests.report.page.conftest import PageOf

pytestmark = pytest.mark.slow  # together they take long

LINKS = "distill.kdr.review_links"
SEARCH = ["table", "curves", "settings", "links", "early", "budget", "provenance"]
ABLATION = ["table", "differences", "curves", "links", "early", "budget", "provenance"]


@pytest.fixture(params=["full_ablation", "full_search"])
def study(request: pytest.FixtureRequest) -> AblationLog | ExampleLog:
    found: AblationLog | ExampleLog = request.getfixturevalue(request.param)
    return found


def section(page: Page, name: str) -> Section:
    [found] = [section for section in page.sections if section.id == name]
    return found


def table_of(page: Page) -> Grid:
    table = section(page, "table").table
    assert table is not None
    return table


def figures(page: Page) -> dict[str, FigureBlock]:
    return {block.id: block for section in page.sections for block in section.figures}


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_plotly_accepts_every_figure(
    study: AblationLog | ExampleLog, page_of: PageOf, palette: Mapping[str, str]
) -> None:
    blocks = figures(page_of(study))
    assert len(blocks) >= 6
    for block in blocks.values():
        # raises on unknown settings and colours
        plotly.graph_objects.Figure(coloured(block.figure, palette))
        assert "$" not in json.dumps(coloured(block.figure, palette))


def test_every_query_below_a_figure_has_an_answer(
    study: AblationLog | ExampleLog, page_of: PageOf
) -> None:
    queries = {
        block.query
        for block in figures(page_of(study)).values()
        if block.query and " query " in block.query
    }
    assert queries
    for command in queries:
        *_, name, sql = shlex.split(command)
        assert name == "query"
        assert query(study.storage, sql).num_rows > 0


def test_every_figure_has_a_caption_and_its_data(
    study: AblationLog | ExampleLog, page_of: PageOf
) -> None:
    for block in figures(page_of(study)).values():
        assert block.caption.endswith(".")
        assert block.query
        assert block.data is None or block.data.rows


def test_an_ablation_shows_verdicts_and_no_search_sections(
    full_ablation: AblationLog, page_of: PageOf
) -> None:
    page = page_of(full_ablation)
    assert [section.id for section in page.sections] == ABLATION
    assert page.kind == "Ablation (arms): 5 arms by 5 seeds, compared by AP with baseline"
    assert [(tile.value, tile.label) for tile in page.tiles] == [
        ("30.6", "AP (%) of baseline, mean of 5 completed seeds"),
        ("1", "helps: better"),
        ("1", "hurts: no-links"),
        ("1", "no relevant effect: close"),
        ("1", "undecided: broken"),
    ]
    assert page.state.startswith("24 of 25 trials (23 completed, 1 failed), about ")


def test_a_search_shows_its_settings_and_claims_no_effects(
    full_search: ExampleLog, page_of: PageOf
) -> None:
    page = page_of(full_search)
    assert [section.id for section in page.sections] == SEARCH
    assert page.kind.endswith("for the highest AP; it does not measure effects")
    assert "no difference here is the effect" in section(page, "table").lead[0]
    assert "not an effect" in figures(page)["figure-links"].title
    assert [tile.label for tile in page.tiles] == [
        "best AP (%): trial-0005",
        "completed",
        "stopped early",
        "failed",
    ]
    assert [row[:3] for row in table_of(page).rows[:2]] == [
        (1, "trial-0005", "completed"),
        (2, "trial-0004", "completed"),
    ]
    assert [row[3] for row in table_of(page).rows[:2]] == [
        pytest.approx(25.0),
        pytest.approx(24.0),
    ]


def test_a_factorial_shows_effects_and_marks_arms_that_change_more_than_links(
    ablation_log: AblationLog, page_of: PageOf
) -> None:
    changes: dict[str, dict[str, Any]] = {
        "links": {LINKS: []},
        "weight": {"distill.kdr.weight": 1.0},
    }
    factors = {name: {"off": change} for name, change in changes.items()}
    ablation_log.ablation |= {"design": "factorial", "factors": factors}
    for number, off in enumerate([(), ("links",), ("weight",), ("links", "weight")]):
        levels = {name: "off" if name in off else "baseline" for name in factors}
        changed = {path: value for name in off for path, value in changes[name].items()}
        values = [0.3 + 0.02 * number, 0.31 + 0.02 * number, 0.3 + 0.021 * number]
        ablation_log.arm("-".join(off) or "baseline", values, levels=levels, changes=changed)
    page = page_of(ablation_log)
    blocks = figures(page)
    assert blocks["figure-differences"].title == "Effects of the factors"
    assert blocks["figure-differences"].caption.startswith("Each row is one effect")
    texts = [
        annotation["text"] for annotation in blocks["figure-links"].figure["layout"]["annotations"]
    ]
    assert texts == ["baseline", "30.3 reference", "links", "32.4", "links-weight *", "36.4"]
    assert blocks["figure-links"].caption.endswith("*: the arm also changes other settings.")


def test_failures_are_listed_with_kind_and_traceback(
    full_ablation: AblationLog, page_of: PageOf
) -> None:
    [failure] = section(page_of(full_ablation), "budget").failures
    assert (failure.name, failure.kind, failure.traceback) == (
        "broken, seed 3",
        "out_of_memory",
        "Traceback ...",
    )


def test_another_metric_is_shown_throughout(full_ablation: AblationLog, page_of: PageOf) -> None:
    page = page_of(full_ablation, metric="AP50")
    assert figures(page)["figure-curves"].title == "AP50 (%) by epoch"
    assert table_of(page).columns[2] == "AP50 (%)"
    with pytest.raises(ConfigError, match="--metric: must be one of AP, AP50"):
        page_of(full_ablation, metric="speed")


@pytest.mark.parametrize("event", ["failed", "started"])
def test_an_ablation_without_a_completed_trial_says_so(
    ablation_log: AblationLog, page_of: PageOf, event: Event
) -> None:
    ablation_log.arm("baseline", [0.1, 0.2], event=event)
    ablation_log.arm("better", [0.1, 0.2], event=event)
    page = page_of(ablation_log)
    assert section(page, "table").lead == (
        "No trial is completed yet, so there is nothing to compare.",
    )
    assert section(page, "differences").lead == (
        "Nothing to compare yet: no seed is completed in both the reference and an arm.",
    )
    page_html(page)


def test_a_search_with_only_failures_says_so(example_log: ExampleLog, page_of: PageOf) -> None:
    example_log.trial("a", event="failed", epoch=0, AP=None)
    page = page_of(example_log)
    assert section(page, "table").lead[0] == "No trial is completed yet, so none has a rank."
    assert section(page, "curves").lead == ("No epoch with a value for AP is logged yet.",)
    assert section(page, "settings").lead == ("No trial has a value for AP yet.",)
    page_html(page)


def test_a_study_that_has_not_started_says_so(example_log: ExampleLog, page_of: PageOf) -> None:
    with LogWriter(example_log.storage, "example") as writer:
        writer.arms(
            [
                ArmRow(
                    study="example",
                    key="a",
                    arm="trial-0001",
                    study_config=json.dumps(example_log.content),
                )
            ]
        )
    page = page_of(example_log)
    assert section(page, "table").lead == ("No trial has started yet.",)
    assert page.state.endswith("(none started).")
    page_html(page)


def test_a_single_trial_has_a_curve_and_no_settings(
    example_log: ExampleLog, page_of: PageOf
) -> None:
    del example_log.content["search"]
    example_log.trial("a")
    page = page_of(example_log)
    assert page.kind == "Single trial"
    assert [section.id for section in page.sections] == [
        "table",
        "curves",
        "early",
        "budget",
        "provenance",
    ]
    assert section(page, "early").lead[0].startswith("Too few trials to compare early epochs")


def test_one_seed_is_undecided(ablation_log: AblationLog, page_of: PageOf) -> None:
    ablation_log.ablation["seeds"] = [0]
    ablation_log.arm("baseline", [0.3])
    ablation_log.arm("better", [0.4])
    page = page_of(ablation_log)
    assert table_of(page).rows[1][-1] == "undecided (one seed)"
    assert "thick lines" not in figures(page)["figure-curves"].caption


def test_several_commits_are_noted(ablation_log: AblationLog, page_of: PageOf) -> None:
    ablation_log.arm("baseline", [0.3, 0.4])
    ablation_log.arm("better", [0.4, 0.5], commit="c2", dirty=True)
    assert section(page_of(ablation_log), "provenance").lead == (
        "The results come from 2 commits.",
        "Some come from code with uncommitted changes.",
    )


def test_the_study_file_is_shown(full_search: ExampleLog, page_of: PageOf) -> None:
    [text] = section(page_of(full_search), "provenance").texts
    assert text.text.startswith("study: example\n")


def test_a_page_reloads_only_while_the_study_is_unfinished(
    full_ablation: AblationLog, page_of: PageOf
) -> None:
    assert page_of(full_ablation, reload_s=5).reload_s == 5  # one trial has not started
    full_ablation.arm("broken", {4: 0.3})
    assert page_of(full_ablation, reload_s=5).reload_s is None


def test_a_page_with_many_trials_draws_some_and_says_which(
    example_log: ExampleLog, page_of: PageOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdr.report.page.search_sections.MOST_ROWS", 3)
    monkeypatch.setattr("kdr.report.page.search_sections.MOST_LINES", 3)
    monkeypatch.setattr("kdr.report.page.search_sections.MOST_TRIALS", 4)
    for number in range(6):
        example_log.trial(f"trial-{number}", AP=0.1 * (number + 1))
    page = page_of(example_log)
    assert len(table_of(page).rows) == 3
    assert "3 more trials are not listed here" in table_of(page).notes[1]
    assert figures(page)["figure-curves"].notes == (
        "3 of 6 trials are not drawn: those with the lowest AP.",
    )
    assert figures(page)["figure-cost"].notes == (
        "4 of 6 trials are drawn: the best, and an even sample of the others.",
    )


def test_no_two_parts_of_a_page_share_an_id(
    study: AblationLog | ExampleLog, page_of: PageOf
) -> None:
    ids = re.findall(r'\sid="([^"]+)"', page_html(page_of(study)).split("<script")[0])
    assert len(ids) == len(set(ids))
