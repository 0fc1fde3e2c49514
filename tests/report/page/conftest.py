"""Example studies and their pages."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from kdr.report.page.html import Page
from kdr.report.page.study_page import study_page
from kdr.results.reader import read_log
from tests.conftest import AblationLog, ExampleLog

LINKS = "distill.kdr.review_links"
PageOf = Callable[..., Page]
"""Takes an example log and options of `study_page`."""


@pytest.fixture
def page_of() -> PageOf:
    """Builds the page of an example study."""

    def build(example: AblationLog | ExampleLog, **options: Any) -> Page:
        log = read_log(example.storage, example.study)
        return study_page(
            log, example.study, now=datetime.now(UTC), log_folder=example.storage.log, **options
        )

    return build


@pytest.fixture
def full_ablation(ablation_log: AblationLog) -> AblationLog:
    """Arms that help, hurt, change links and fail, with five seeds."""
    base = [0.300, 0.310, 0.305, 0.320, 0.295]
    arms = {
        "baseline": base,
        "better": [0.321, 0.330, 0.324, 0.342, 0.313],
        "no-links": [0.281, 0.290, 0.284, 0.302, 0.273],
        "close": [0.3005, 0.310, 0.3052, 0.3201, 0.2949],
        "broken": [0.29, 0.31, 0.30],
    }
    for name, values in arms.items():
        ablation_log.arm(
            name, values, changes={LINKS: []} if name == "no-links" else {}, seconds=50.0
        )
    ablation_log.arm(
        "broken",
        {3: 0.1},
        event="failed",
        failure_kind="out_of_memory",
        reason="no room",
        traceback="Traceback ...",
    )
    ablation_log.arm("broken", {4: None})
    return ablation_log


@pytest.fixture
def full_search(example_log: ExampleLog) -> ExampleLog:
    """A search with conditions, early stops and a failure."""
    example_log.content["search"]["parameters"]["distill.kdr.attention"] = {
        "choice": ["none", "both"],
        "when": {LINKS: "not empty"},
    }
    for number in range(6):
        links = ["P4->P3", "P5->P4"][: number % 3]
        drawn = {"distill.kdr.weight": [1.0, 2.0, 5.0][number % 3], LINKS: links}
        drawn |= {"distill.kdr.attention": ["none", "both"][number % 2]} if links else {}
        example_log.trial(
            f"key-{number}", arm=f"trial-{number:04}", parameters=drawn, AP=0.2 + 0.01 * number
        )
    example_log.trial(
        "key-6", arm="trial-0006", parameters=drawn, AP=0.1, event="stopped_early", epoch=2
    )
    example_log.trial(
        "key-7",
        arm="trial-0007",
        parameters=drawn,
        AP=None,
        event="failed",
        epoch=0,
        failure_kind="non_finite_loss",
    )
    example_log.trial("teacher", role="teacher", AP=0.5)
    return example_log
