import pytest

from kdr.report.tables.requested_table import TableRequest, request_from, requested_grid
from kdr.results.reader import read_log
from tests.conftest import ExampleLog

WEIGHT, LINKS = "distill.kdr.weight", "distill.kdr.review_links"


@pytest.mark.parametrize(
    "request_",
    [
        TableRequest("a", "ablation", ("AP", "AP/cat"), allow_unequal=True),
        TableRequest("a", "pivot", ("AP",), (WEIGHT, LINKS)),
        TableRequest("a", "comparison", other="b"),
    ],
)
def test_a_request_comes_back_from_its_source(request_: TableRequest) -> None:
    assert request_from({**request_.source(), "format": "md"}) == request_


def test_a_pivot_has_one_setting_down_and_the_other_across(example_log: ExampleLog) -> None:
    for key, weight, links, AP in (
        ("a", 10.0, ["P4->P3"], 0.30),
        ("b", 10.0, ["P4->P3"], 0.32),
        ("c", 2.0, ["P4->P3"], 0.25),
        ("d", 2.0, [], 0.10),
    ):
        example_log.trial(key, parameters={WEIGHT: weight, LINKS: links}, AP=AP)
    request = TableRequest("example", "pivot", ("AP",), (WEIGHT, LINKS))
    grid = requested_grid(
        request, lambda study: read_log(example_log.storage, study), in_full=False
    )
    assert grid.title == f"example: AP (%) by {WEIGHT} (down) and {LINKS} (across)"
    assert grid.columns == (WEIGHT, '["P4->P3"]', "[]")
    assert grid.rows == (("2", "25.0 (n=1)", "10.0 (n=1)"), ("10", "31.0 ± 1.4 (n=2)", ""))
    assert "come from a search" in " ".join(grid.notes)
    in_full = requested_grid(
        request, lambda study: read_log(example_log.storage, study), in_full=True
    )
    assert in_full.columns == (WEIGHT, LINKS, "n", "mean AP", "sd", "min", "max")
    assert in_full.rows[0][:3] == (10.0, '["P4->P3"]', 2)
    assert in_full.rows[0][3] == pytest.approx(0.31)
