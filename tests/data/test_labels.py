import re

import pytest

from kdr.data.labels import match_labels
from kdr.errors import ConfigError

_COCO = ("__background__", "person", "bicycle", "N/A", "car", "N/A", "traffic light")


def test_labels_are_matched_by_name_in_any_order() -> None:
    assert match_labels(("cat", "dog", "car"), ("car", "cat")) == (2, 0)


def test_fillers_in_torchvisions_list_are_not_classes_but_keep_their_index() -> None:
    assert match_labels(_COCO, ("car", "traffic light", "person")) == (4, 6, 1)
    with pytest.raises(ConfigError, match="got none for 'N/A'"):
        match_labels(_COCO, ("N/A",))


def test_a_mapping_renames_the_teachers_classes() -> None:
    assert match_labels(_COCO, ("vehicle", "person"), {"car": "vehicle"}) == (4, 1)


def test_a_mapping_wins_over_an_equal_name() -> None:
    assert match_labels(("cat", "kitten"), ("cat",), {"kitten": "cat"}) == (1,)


@pytest.mark.parametrize(
    ("student", "mapping", "message"),
    [
        (
            ("person", "cars"),
            None,
            (
                "teacher.labels: must match each category of the data set to one of the teacher's, "
                "got none for 'cars'. Did you mean 'car'? Map one to it: {<teacher's name>: cars}"
            ),
        ),
        (
            ("car",),
            {"lorry": "car"},
            "teacher.labels: must name categories of the teacher, got 'lorry'",
        ),
        (
            ("car",),
            {"__background__": "car"},
            "must name categories of the teacher, got '__background__'",
        ),
        (
            ("car",),
            {"bicycle": "cart"},
            "labels.bicycle: must be a category of the data set, got 'cart'. Did you mean 'car'?",
        ),
        (
            ("vehicle",),
            {"car": "vehicle", "bicycle": "vehicle"},
            "must map exactly one category of the teacher to 'vehicle', got bicycle, car",
        ),
    ],
)
def test_label_spaces_that_do_not_match_are_refused(
    student: tuple[str, ...], mapping: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        match_labels(_COCO, student, mapping)


def test_all_missing_classes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError, match="'zebra'") as caught:
        match_labels(_COCO, ("person", "zebra", "giraffe"))
    assert len(caught.value.problems) == 2
