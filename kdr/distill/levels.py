"""Which feature level of the student learns from which level of the teacher."""

import math
from collections.abc import Sequence

from kdr.config.detector import level_name
from kdr.errors import ConfigError


def match_levels(student_strides: Sequence[float], teacher_strides: Sequence[float]) -> list[tuple[int, int]]:
    """Pairs the levels of two detectors one to one by stride, never by index.

    Section F.1 of the method page: strides may differ by less than a factor of sqrt(2); the nearest pairs are made first,
    ties go to the earlier level. Levels without a partner are left out.

    Args:
        student_strides: strides of the student's levels in pixels.
        teacher_strides: strides of the teacher's levels in pixels.

    Returns:
        (student level, teacher level) indices, in the order of the student's levels.

    Raises:
        ConfigError: if no pair is left.
    """
    distances = sorted(
        (abs(math.log2(of_student / of_teacher)), student, teacher)
        for student, of_student in enumerate(student_strides)
        for teacher, of_teacher in enumerate(teacher_strides)
    )
    pairs: dict[int, int] = {}
    for distance, student, teacher in distances:
        if distance < 0.5 and student not in pairs and teacher not in pairs.values():
            pairs[student] = teacher
    if not pairs:
        raise ConfigError(
            "distill: student and teacher must share a feature level (strides within a factor of sqrt(2)), "
            f"got strides {_shown(student_strides)} and {_shown(teacher_strides)}. Choose detectors whose pyramids overlap"
        )
    return sorted(pairs.items())


def unique_level_names(strides: Sequence[float]) -> list[str]:
    """Names levels by stride, P3 for stride 8; a second level of the same stride is P3b, a third P3c."""
    names = [level_name(stride) for stride in strides]
    return [name + "abcdefgh"[earlier] * (earlier > 0) for i, name in enumerate(names) for earlier in [names[:i].count(name)]]


def _shown(strides: Sequence[float]) -> str:
    return "(" + ", ".join(f"{stride:g}" for stride in strides) + ")"
