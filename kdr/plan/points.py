"""Points of a search space: drawn one parameter at a time, or enumerated.

A point maps the paths of the drawn parameters to their values. A parameter whose `when` does not
hold is not drawn and not in the point: the setting keeps its value in the trial.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdr.config.canonical import canonical_json
from kdr.config.overrides import value_at
from kdr.config.search import Parameter
from kdr.config.study import Study

Point = dict[str, Any]
Suggest = Callable[[str, Parameter], Any]
"""Path and parameter -> a value for it; for a subset, the members that are in."""
MAX_CELLS = 10_000
"""Maximum number of cells in a grid. Counting stops here, because it visits every cell."""


@dataclass(frozen=True)
class Space:
    """The parameters of a search, in an order in which their conditions can be decided."""

    parameters: Mapping[str, Parameter]
    """Parameters by path; each comes after those that its conditions name."""
    settings: Mapping[str, Any]
    """The base trial as plain values, from which conditions read the settings that are not
    drawn."""
    unordered: tuple[str, ...] = ()
    """Parameters in a cycle of conditions, or that depend on one; `kdr.plan.space` refuses them."""

    def draws(self, path: str, drawn: Mapping[str, Any]) -> bool:
        """Returns whether the conditions of a parameter hold, given the values drawn before it."""
        return all(
            holds(wanted, drawn[other] if other in drawn else value_at(self.settings, other))
            for other, wanted in self.parameters[path].when.items()
        )


def space_of(study: Study) -> Space:
    """Returns the search space of a study; without a search it is empty."""
    waiting = dict(study.search.parameters) if study.search else {}
    # One at a time, in the order of the file: the order of draws must not depend on anything else,
    # or a seeded sampler would propose other values.
    placed: dict[str, Parameter] = {}
    while ready := [
        path
        for path, parameter in waiting.items()
        if not any(other in waiting for other in parameter.when)
    ]:
        placed[ready[0]] = waiting.pop(ready[0])
    return Space(placed | waiting, study.base.model_dump(mode="json"), tuple(waiting))


def holds(wanted: Any, value: Any) -> bool:
    """Returns whether a setting meets a condition: a value, values, `empty` or `not empty`."""
    if wanted in ("empty", "not empty"):
        return isinstance(value, list | tuple) and (len(value) == 0) == (wanted == "empty")
    return any(same(one, value) for one in (wanted if isinstance(wanted, list) else [wanted]))


def same(one: Any, other: Any) -> bool:
    """Returns whether two plain values are equal settings: 1 and 1.0 are, 1 and true are not."""
    return canonical_json(one) == canonical_json(other)


def draw(space: Space, suggest: Suggest) -> Point:
    """Draws one point, calling `suggest` only for the parameters whose conditions hold.

    A subset smaller than its `at_least` is filled up with missing members in the order of the study
    file, so that the same suggestions always give the same point.
    """

    def value(path: str, parameter: Parameter) -> Iterator[Any]:
        answer = suggest(path, parameter)
        yield answer if parameter.subset is None else repaired(parameter, answer)

    return next(_points(space, value))  # the only one, because each parameter has one value


def grid(space: Space) -> Iterator[Point]:
    """Yields every combination once: all whole numbers, all choices, all subsets, and `points`
    values of a float range.

    Raises:
        ValueError: if a float range has no `points`.
    """
    return _points(space, lambda _, parameter: _grid_values(parameter))


def corners(space: Space) -> Iterator[Point]:
    """Yields every combination of `extremes`."""
    return _points(space, lambda _, parameter: iter(extremes(parameter)))


def num_cells(space: Space) -> int | None:
    """Returns the number of points of a space; None if it is infinite or above `MAX_CELLS`."""
    if any(
        parameter.kind == "float" and parameter.points is None
        for parameter in space.parameters.values()
    ):
        return None
    count = sum(1 for _ in itertools.islice(grid(space), MAX_CELLS + 1))
    return count if count <= MAX_CELLS else None


def extremes(parameter: Parameter) -> list[Any]:
    """Returns the extreme values of a parameter: both ends of a range, every choice; for a subset,
    the smallest, the largest, and each single member.
    """
    values = parameter.drawn_from(parameter.kind) or ()
    if parameter.kind != "subset":
        return list(values)
    chosen = [
        repaired(parameter, few) for few in ([], *([member] for member in values), list(values))
    ]
    return [subset for index, subset in enumerate(chosen) if subset not in chosen[:index]]


def repaired(parameter: Parameter, subset: Sequence[Any]) -> list[Any]:
    """Returns a subset in the order of the study file, filled up to `at_least` members with the
    first missing ones.
    """
    members = parameter.subset or ()
    absent = [member for member in members if member not in subset]
    added = absent[: max(0, parameter.at_least - len(subset))]
    return [member for member in members if member in subset or member in added]


def _points(space: Space, values: Callable[[str, Parameter], Iterator[Any]]) -> Iterator[Point]:
    """Yields every point whose parameters have the given values; conditions are evaluated on the
    way.
    """

    def extend(drawn: Point, paths: Sequence[str]) -> Iterator[Point]:
        if not paths:
            yield drawn
            return
        path, *later = paths
        if not space.draws(path, drawn):
            yield from extend(drawn, later)
            return
        for value in values(path, space.parameters[path]):
            yield from extend(drawn | {path: value}, later)

    return extend({}, list(space.parameters))


def _grid_values(parameter: Parameter) -> Iterator[Any]:
    if parameter.float_ is not None:
        yield from _spread(*parameter.float_, parameter.points, log=parameter.log)
    elif parameter.int_ is not None:
        yield from range(parameter.int_[0], parameter.int_[1] + 1)
    elif parameter.choice is not None:
        yield from parameter.choice
    else:
        members = parameter.subset or ()
        for size in range(parameter.at_least, len(members) + 1):
            yield from map(list, itertools.combinations(members, size))


def _spread(low: float, high: float, points: int | None, *, log: bool) -> Iterator[float]:
    """Yields evenly spaced values; on a log scale, neighbours differ by equal factors."""
    if points is None:
        raise ValueError("a float range without points has no grid")
    for index in range(points):
        share = index / (points - 1)
        inner = low * (high / low) ** share if log else low + (high - low) * share
        # both ends exactly, and none beyond them: rounding must not make a value invalid
        yield low if index == 0 else high if index == points - 1 else min(max(inner, low), high)
