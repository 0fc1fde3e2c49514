import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdr.distill.levels import match_levels, unique_level_names
from kdr.errors import ConfigError

STRIDES = st.lists(st.floats(2, 300), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        ((8, 16, 32), (8, 16, 32), [(0, 0), (1, 1), (2, 2)]),
        # RetinaNet learns from an R-CNN
        ((8, 16, 32, 64, 128), (4, 8, 16, 32, 64), [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ((8, 10), (9.9,), [(1, 0)]),  # nearest first
        ((8, 8), (8,), [(0, 0)]),  # ties to the earlier level
        ((16, 16, 32), (16, 16), [(0, 0), (1, 1)]),
        ((32, 16, 8), (8, 16, 32), [(0, 2), (1, 1), (2, 0)]),
        ((10.67, 32), (8, 16), [(0, 0)]),  # 8 is nearer than 16 in octaves; 32 is an octave away
    ],
)
def test_levels_are_matched_by_stride(
    student: tuple[float, ...], teacher: tuple[float, ...], pairs: list[tuple[int, int]]
) -> None:
    assert match_levels(student, teacher) == pairs


@given(STRIDES, STRIDES)
def test_matching_is_one_to_one_within_half_an_octave_and_complete(
    student: list[float], teacher: list[float]
) -> None:
    def apart(pair: tuple[int, int]) -> float:
        return abs(math.log2(student[pair[0]] / teacher[pair[1]]))

    possible = [
        (i, j) for i in range(len(student)) for j in range(len(teacher)) if apart((i, j)) < 0.5
    ]
    if not possible:
        with pytest.raises(ConfigError, match="share a feature level"):
            match_levels(student, teacher)
        return
    pairs = match_levels(student, teacher)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert set(pairs) <= set(possible)
    # each pair not taken lost to one at least as near
    for free in set(possible) - set(pairs):
        assert any(
            apart(pair) <= apart(free) for pair in pairs if pair[0] == free[0] or pair[1] == free[1]
        )


def test_a_pyramid_without_a_common_level_is_refused_with_both_strides() -> None:
    with pytest.raises(ConfigError, match=r"got strides \(8, 16\) and \(64\)\. Use detectors"):
        match_levels((8, 16), (64,))


def test_levels_of_equal_stride_have_different_names() -> None:
    assert unique_level_names((8, 16, 32, 32, 32)) == ["P3", "P4", "P5", "P5b", "P5c"]
