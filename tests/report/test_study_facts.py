import pytest

from kdr.report.study_facts import budget, failures, question_of, study_provenance
from kdr.results.reader import TrialState, read_log
from tests.conftest import ExampleLog

COMMENT = """\
# yaml-language-server: $schema=../docs/study.schema.json
# Question: which settings help? Weight,
#           links and attention.
#
# Expected: no idea
# Written on a Monday.
study: example
# Question: not this one
"""


def states(log: ExampleLog) -> list[TrialState]:
    return list(read_log(log.storage).states().values())


def test_the_head_comment_is_split_by_its_labels() -> None:
    assert question_of(COMMENT) == (
        ("Question", "which settings help? Weight, links and attention."),
        ("Expected", "no idea"),
        ("", "Written on a Monday."),
    )


@pytest.mark.parametrize("text", ["", "study: a\n# Question: late", "#\n#\n"])
def test_a_file_without_a_comment_has_no_question(text: str) -> None:
    assert question_of(text) == ()


def test_failures_are_listed_with_their_reasons(example_log: ExampleLog) -> None:
    example_log.trial("good")
    example_log.trial(
        "bad",
        event="failed",
        epoch=2,
        failure_kind="out_of_memory",
        reason="no room",
        traceback="x" * 9000 + "end",
    )
    example_log.trial("gone", event="cancelled", epoch=1)
    listed, num_more = failures(states(example_log), {"bad": "trial-0002"}, most=1)
    assert (len(listed), num_more) == (1, 1)
    [failure] = listed
    assert (failure.name, failure.kind, failure.epoch, failure.reason) == (
        "trial-0002",
        "out_of_memory",
        2,
        "no room",
    )
    assert len(failure.traceback) == 6000
    assert failure.traceback.endswith("xend")


def test_the_budget_counts_trials_epochs_and_seconds(example_log: ExampleLog) -> None:
    example_log.trial("a")
    example_log.trial("b", event="failed", epoch=2)
    log = read_log(example_log.storage)
    used = budget(log, "example", states(example_log), log.study_content("example"))
    assert (used.counts, used.num_epochs, used.trial_seconds) == (
        {"completed": 1, "failed": 1},
        6,
        66.0,
    )
    assert (used.limits, used.images_per_s, used.peak_memory_bytes, used.gpu_hours) == (
        {"trials": 8},
        None,
        None,
        0,
    )


def test_provenance_counts_trials(example_log: ExampleLog) -> None:
    example_log.trial("a", commit="c" * 40, dirty=False, host="n1", versions={"torch": "2.1"})
    example_log.trial(
        "b", commit="c" * 40, dirty=True, host="n1", versions={"torch": "2.2"}, data_id="d"
    )
    found = study_provenance(states(example_log))
    assert found.commits == {"c" * 12: 1, f"{'c' * 12} (modified)": 1}
    assert (found.hosts, found.data, found.versions) == (
        {"n1": 2},
        {"d": 1},
        {"torch": {"2.1": 1, "2.2": 1}},
    )
    assert found.first.startswith("2026-01-01")
