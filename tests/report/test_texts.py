import pytest

from kdr.report.texts import counted, duration, short_names


def test_short_names_are_used_only_where_they_are_clear():
    assert short_names(["distill.kdr.weight", "a.epochs", "epochs"]) == [
        "weight",
        "a.epochs",
        "epochs",
    ]


@pytest.mark.parametrize(("seconds", "text"), [(40.4, "40 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0 seeds"), (1, "1 seed"), (5, "5 seeds")])
def test_one_is_not_many(number, text):
    assert counted(number, "seed") == text
