"""Matches the teacher's classes to the student's by category name."""

import difflib
from collections.abc import Mapping, Sequence

from kdr.errors import ConfigError

# torchvision's COCO lists have 91 entries for 80 classes; these names fill the unused ids
_NO_CLASS = ("__background__", "N/A")


def match_labels(
    teacher: Sequence[str], student: Sequence[str], mapping: Mapping[str, str] | None = None
) -> tuple[int, ...]:
    """Returns the index in the teacher's list of each class of the student.

    Classes that only the teacher has are dropped.

    Args:
        teacher: the teacher's category names by index, with torchvision's `__background__` and
            `N/A` if present.
        student: the data set's category names by index.
        mapping: the teacher's name -> the data set's name where they differ (`teacher.labels`).

    Raises:
        ConfigError: if a class of the student matches no class of the teacher, or several; or if
            the mapping contains a name that the teacher or the data set does not have.
    """
    mapping = mapping or {}
    known = {name: index for index, name in enumerate(teacher) if name not in _NO_CLASS}
    problems = [
        f"teacher.labels: must name categories of the teacher, got {name!r}{_nearest(name, known)}"
        for name in mapping
        if name not in known
    ]
    problems += [
        f"teacher.labels.{name}: must be a category of the data set, got "
        f"{target!r}{_nearest(target, student)}"
        for name, target in mapping.items()
        if target not in student
    ]
    sources: dict[str, list[str]] = {name: [] for name in student}
    for name in known:
        sources.get(mapping.get(name, name), []).append(name)
    # an explicit mapping wins over a name that happens to be equal
    chosen = {
        target: [n for n in names if n in mapping] or names for target, names in sources.items()
    }
    for target, names in chosen.items():
        if not names:
            problems.append(
                "teacher.labels: must match each category of the data set to one of the teacher's, "
                f"got none for {target!r}{_nearest(target, known)} Map one to it: "
                f"{{<teacher's name>: {target}}}"
            )
        elif len(names) > 1:
            problems.append(
                f"teacher.labels: must map exactly one category of the teacher to {target!r}, got "
                f"{', '.join(names)}"
            )
    if problems:
        raise ConfigError(problems)
    return tuple(known[chosen[name][0]] for name in student)


def _nearest(name: str, names: Sequence[str] | Mapping[str, int]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f". Did you mean {close[0]!r}?" if close else "."
