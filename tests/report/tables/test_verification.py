import json
from collections.abc import Callable

import pytest

from kdr.errors import ConfigError
from kdr.report.tables.formats import FILE_FORMATS, FileFormat, written
from kdr.report.tables.requested_table import TableRequest, requested_grid
from kdr.report.tables.verification import IN_FULL, Difference, verified
from kdr.results.reader import Log, read_log
from tests.conftest import AblationLog

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]
formats = pytest.mark.parametrize("format", FILE_FORMATS)


@pytest.fixture
def arms(ablation_log: AblationLog) -> AblationLog:
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    return ablation_log


def text_of(log: AblationLog, format: FileFormat, request: TableRequest | None = None) -> str:
    request = request or TableRequest(log.study, "ablation", ("AP", "AP50"))
    return written(
        requested_grid(request, reader(log), in_full=format in IN_FULL), format, request.source()
    )


def reader(log: AblationLog) -> Callable[[str], Log]:
    return lambda study: read_log(log.storage, study)


@formats
def test_an_unchanged_table_matches_the_log(arms: AblationLog, format: FileFormat) -> None:
    found = verified(text_of(arms, format), reader(arms))
    assert (found.study, found.differences) == ("ablate", ())
    assert found.num_cells >= 20


@pytest.mark.parametrize(
    ("format", "number", "by", "column"),
    [
        ("md", "32.6", "33.6", "AP (%)"),
        ("latex", "{+2.00}", "{+2.10}", "difference"),
        ("html", "<td>[1.80, 2.20]", "<td>[1.90, 2.20]", "95 % interval"),
        ("csv", "0.0625", "0.0425", "sign-flip p"),
        ("json", '"sign-flip p": 0.0625', '"sign-flip p": 0.0624', "sign-flip p"),
        ("latex", "5/5 & 32.6", "8/8 & 32.6", "n"),
        ("md", "**helps**", "**hurts**", "result"),
    ],
)
def test_edited_cells_are_reported(
    arms: AblationLog, format: FileFormat, number: str, by: str, column: str
) -> None:
    text = text_of(arms, format)
    assert text.count(number) == 1
    [difference] = verified(text.replace(number, by), reader(arms)).differences
    assert (difference.row, difference.column) == ("better", column)
    assert difference.written != difference.recomputed


def test_full_numbers_may_differ_in_the_last_digit_only(arms: AblationLog) -> None:
    text = text_of(arms, "json", TableRequest(arms.study, "ablation", ("AP",)))
    [low] = [row["AP (%) low"] for row in json.loads(text)["rows"] if row["arm"] == "better"]
    assert low == pytest.approx(1.8, abs=0.01)
    assert verified(text.replace(str(low), str(low * (1 + 1e-15))), reader(arms)).differences == ()
    [difference] = verified(text.replace(str(low), str(low)[:8]), reader(arms)).differences
    assert difference == Difference("better", "AP (%) low", str(low)[:8], str(low))


@formats
def test_results_that_changed_since_are_reported(arms: AblationLog, format: FileFormat) -> None:
    text = text_of(arms, format)
    arms.arm("better", {4: 0.9}, attempt=2)
    columns = {difference.column for difference in verified(text, reader(arms)).differences}
    assert {"result"} <= columns


def test_missing_and_added_rows_are_reported(arms: AblationLog) -> None:
    text = text_of(arms, "md", TableRequest(arms.study, "ablation", ("AP",)))
    lines = text.splitlines()
    better = next(line for line in lines if line.startswith("| better"))
    gone = verified(text.replace(better, ""), reader(arms)).differences
    assert {(one.row, one.written) for one in gone} == {("better", "nothing")}
    assert Difference("better", "arm", "nothing", "better") in gone
    added = verified(
        text.replace(better, f"{better}\n| best | 5/5 | 99.9 |"), reader(arms)
    ).differences
    assert Difference("best", "AP (%)", "99.9", "nothing") in added


def test_a_request_of_another_version_is_refused(arms: AblationLog) -> None:
    text = text_of(arms, "md").replace('"kind": "ablation"', '"kind": "ablation", "colour": 1')
    with pytest.raises(
        ConfigError,
        match=r"TABLE: this version cannot read the file's source: .*colour",
    ):
        verified(text, reader(arms))
    with pytest.raises(
        ConfigError,
        match=r"TABLE: the kind in the file's source must be one of ablation, .* got 'poll'",
    ):
        verified(text_of(arms, "md").replace('"kind": "ablation"', '"kind": "poll"'), reader(arms))


@formats
@pytest.mark.slow
@pytest.mark.parametrize(
    "request_",
    [
        TableRequest("ablate", "pivot", ("AP",), ("distill.kdr.weight", "seed")),
        TableRequest("ablate", "settings", ("AP",), ("seed",)),
        TableRequest("ablate", "ranking", ("AP50",)),
        TableRequest("ablate", "comparison", ("AP",), other="ablate"),
    ],
    ids=lambda request: request.kind,
)
def test_every_kind_of_table_can_be_verified(
    arms: AblationLog, format: FileFormat, request_: TableRequest
) -> None:
    text = text_of(arms, format, request_)
    assert verified(text, reader(arms)).differences == ()
