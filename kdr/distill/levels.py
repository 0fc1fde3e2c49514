"""Matches the student's feature levels to the teacher's, by stride."""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor

from kdr.config.detector import level_name
from kdr.distill.method import Setup
from kdr.errors import ConfigError

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MatchedLevels:
    """The student levels that learn, finest first, with the teacher levels they learn from."""

    names: tuple[str, ...]
    """Unique names by the student's stride, such as P3."""
    pairs: tuple[tuple[int, int], ...]
    """(student level, teacher level) indices."""
    student_channels: tuple[int, ...]
    """Channels of the student's levels."""
    teacher_channels: tuple[int, ...]
    """Channels of the teacher's levels."""

    def __len__(self) -> int:
        return len(self.names)

    def only(self, names: Collection[str] | None, setting: str) -> "MatchedLevels":
        """Returns the levels with the given names, or all for None.

        Args:
            names: names of levels; levels that the teacher lacks are skipped.
            setting: path of the setting, for the error.

        Raises:
            ConfigError: if no level is left.
        """
        # a name that the teacher lacks has been logged by `matched_levels`
        kept = [i for i, name in enumerate(self.names) if names is None or name in names]
        if not kept:
            raise ConfigError(
                f"{setting}: must name a level that student and teacher share, got "
                f"{', '.join(names or ())}. They share {', '.join(self.names)}"
            )
        return MatchedLevels(
            tuple(self.names[i] for i in kept),
            tuple(self.pairs[i] for i in kept),
            tuple(self.student_channels[i] for i in kept),
            tuple(self.teacher_channels[i] for i in kept),
        )

    def of_student(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Returns the student's tensors at the matched levels, given one per level."""
        return [levels[level] for level, _ in self.pairs]

    def of_teacher(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Returns the teacher's tensors at the matched levels, given one per level, detached."""
        return [levels[level].detach() for _, level in self.pairs]

    def teacher_std(self, setup: Setup, setting: str) -> tuple[float, ...]:
        """Returns the standard deviations of the teacher's matched levels.

        Args:
            setup: the detectors and the seed.
            setting: path of the setting that divides by them, for the error.

        Raises:
            ConfigError: if one is missing, 0 or not finite.
        """
        measured = dict(enumerate(setup.teacher_std or ()))
        # NaN for a missing one, so that a single check below catches missing, 0, NaN and infinity
        stds = [measured.get(level, math.nan) for _, level in self.pairs]
        for name, std in zip(self.names, stds, strict=True):
            if not 0 < std < math.inf:
                raise ConfigError(
                    f"{setting}: the teacher's features must have a positive, finite standard "
                    f"deviation at every level, got {std} at {name}. Check the teacher's weights, "
                    "or use none"
                )
        return tuple(stds)


def matched_levels(setup: Setup, method: str) -> MatchedLevels:
    """Returns the levels that a method distils; logs student levels that have no partner.

    Args:
        setup: the detectors and the seed.
        method: name of the method, for the log.

    Raises:
        ConfigError: if the detectors share no level.
    """
    student, teacher = setup.student, setup.teacher
    pairs = match_levels(student.strides, teacher.strides)
    # named among all of the student's levels, so that a name does not depend on the teacher
    all_names = unique_level_names(student.strides)
    names = [all_names[level] for level, _ in pairs]
    if dropped := [name for name in all_names if name not in names]:
        _log.warning(
            "%s: student levels %s learn nothing: the teacher has no level of their stride",
            method,
            ", ".join(dropped),
        )
    return MatchedLevels(
        tuple(names),
        tuple(pairs),
        tuple(student.channels[level] for level, _ in pairs),
        tuple(teacher.channels[level] for _, level in pairs),
    )


def match_levels(
    student_strides: Sequence[float], teacher_strides: Sequence[float]
) -> list[tuple[int, int]]:
    """Pairs the levels of two detectors one to one by stride, never by index.

    Strides may differ by less than a factor of sqrt(2). The nearest pairs are made first, ties go
    to the earlier level, and levels without a partner are left out (docs/method.md, F.1).

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
    # Greedy, nearest first; the tuples sort ties to the earlier level. By stride, since indices do
    # not line up: P3 is the first level of RetinaNet and the second of Faster R-CNN.
    for distance, student, teacher in distances:
        if distance < 0.5 and student not in pairs and teacher not in pairs.values():
            pairs[student] = teacher
    if not pairs:
        raise ConfigError(
            "distill: student and teacher must share a feature level (strides within a factor of "
            f"sqrt(2)), got strides {_shown(student_strides)} and {_shown(teacher_strides)}. "
            "Use detectors whose pyramids overlap"
        )
    return sorted(pairs.items())


def unique_level_names(strides: Sequence[float]) -> list[str]:
    """Returns names of levels by stride: P3 for stride 8, then P3b, P3c for the same stride.

    torchvision's fasterrcnn_mobilenet_v3_large_320_fpn has two levels of one stride.
    """
    names = [level_name(stride) for stride in strides]
    return [
        name + "abcdefgh"[earlier] * (earlier > 0)
        for i, name in enumerate(names)
        for earlier in [names[:i].count(name)]
    ]


def _shown(strides: Sequence[float]) -> str:
    return "(" + ", ".join(f"{stride:g}" for stride in strides) + ")"
