import json

import pytest

from kdr.errors import ConfigError
from kdr.report.tables.formats import FILE_FORMATS, written
from kdr.report.tables.requested_table import TableRequest, requested_grid
from kdr.report.tables.verification import IN_FULL, Difference, verified
from kdr.results.reader import read_log

BASE = [0.300, 0.310, 0.305, 0.320, 0.295]
BETTER = [0.321, 0.330, 0.324, 0.342, 0.313]
formats = pytest.mark.parametrize("format", FILE_FORMATS)


@pytest.fixture
def arms(ablation_log):
    ablation_log.arm("baseline", BASE)
    ablation_log.arm("better", BETTER)
    return ablation_log


def text_of(log, format, request=None):
    request = request or TableRequest(log.study, "ablation", ("AP", "AP50"))
    return written(
        requested_grid(request, reader(log), in_full=format in IN_FULL), format, request.source()
    )


def reader(log):
    return lambda study: read_log(log.storage, study)


@formats
def test_a_table_as_it_was_written_is_the_logs(arms, format):
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
def test_what_was_changed_by_hand_is_named(arms, format, number, by, column):
    text = text_of(arms, format)
    assert text.count(number) == 1
    [difference] = verified(text.replace(number, by), reader(arms)).differences
    assert (difference.row, difference.column) == ("better", column)
    assert difference.written != difference.recomputed


def test_a_number_in_full_is_held_to_its_digits_but_not_to_the_last_one(arms):
    text = text_of(arms, "json", TableRequest(arms.study, "ablation", ("AP",)))
    [low] = [row["AP (%) low"] for row in json.loads(text)["rows"] if row["arm"] == "better"]
    assert low == pytest.approx(1.8, abs=0.01)
    assert verified(text.replace(str(low), str(low * (1 + 1e-15))), reader(arms)).differences == ()
    [difference] = verified(text.replace(str(low), str(low)[:8]), reader(arms)).differences
    assert difference == Difference("better", "AP (%) low", str(low)[:8], str(low))


@formats
def test_results_that_have_changed_since_are_named(arms, format):
    text = text_of(arms, format)
    arms.arm("better", {4: 0.9}, attempt=2)
    columns = {difference.column for difference in verified(text, reader(arms)).differences}
    assert {"result"} <= columns


def test_rows_and_columns_that_are_missing_or_added_are_named(arms):
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


def test_a_request_of_another_version_is_refused(arms):
    text = text_of(arms, "md").replace('"kind": "ablation"', '"kind": "ablation", "colour": 1')
    with pytest.raises(
        ConfigError,
        match=r"TABLE: its source must be that of a table of this version, got .*colour",
    ):
        verified(text, reader(arms))
    with pytest.raises(
        ConfigError, match=r"TABLE: its source must be one of ablation, .* got 'poll'"
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
def test_every_kind_of_table_can_be_verified(arms, format, request_):
    text = text_of(arms, format, request_)
    assert verified(text, reader(arms)).differences == ()
