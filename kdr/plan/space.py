"""Checks a search space before launch: every path, type, condition and corner."""

import difflib
import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

from kdr.config.overrides import value_at
from kdr.config.search import Parameter, Search
from kdr.config.study import Study
from kdr.errors import ConfigError
from kdr.plan.given_point import enqueued_points
from kdr.plan.points import (
    MAX_CELLS,
    Point,
    Space,
    corners,
    draw,
    extremes,
    holds,
    num_cells,
    space_of,
)

_MAX_CORNERS = 256
_MISSING = object()


def check_space(study: Study) -> None:
    """Checks that every point of the search space is a valid trial.

    Tries all corners if there are at most 256; otherwise each extreme with random values of the
    other parameters, and 256 random points.

    Raises:
        ConfigError: with one line for each problem.
    """
    if study.search is None:
        return
    space = space_of(study)
    # Points are drawn only if the space itself is sound, and enqueued points are checked only if
    # its points are: otherwise one mistake would be reported many times.
    problems = [
        *_overlaps(space),
        *_cycles(space),
        *_conditions(space),
        *_budget(study.search, space),
    ]
    if not problems:
        problems = _points_that_fail(study, space)
    if not problems:
        try:
            enqueued_points(study, space)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(dict.fromkeys(problems))


def points_to_try(space: Space) -> Iterator[Point]:
    """Yields the points on which to check a space: all corners, or a sample if there are many."""
    few = list(itertools.islice(corners(space), _MAX_CORNERS + 1))
    if len(few) <= _MAX_CORNERS:
        yield from few
        return
    # a fixed seed: the same study must always get the same answer
    chance = random.Random(0)  # noqa: S311 - no secret
    for path, parameter in space.parameters.items():
        for value in extremes(parameter):
            yield _random_point(space, chance, {path: value})
    for _ in range(_MAX_CORNERS):
        yield _random_point(space, chance, {})


def _overlaps(space: Space) -> Iterator[str]:
    for one, other in itertools.combinations(sorted(space.parameters), 2):
        if other.startswith(one + "."):
            yield (
                f"search.parameters.{other}: must not be inside another searched parameter, got "
                f"one inside {one}. Search one of them"
            )


def _cycles(space: Space) -> Iterator[str]:
    if space.unordered:
        yield (
            f"search.parameters.{space.unordered[0]}.when: conditions must not form a cycle, got "
            f"{', '.join(space.unordered)} depending on each other"
        )


def _conditions(space: Space) -> Iterator[str]:
    for path, parameter in space.parameters.items():
        for other, wanted in parameter.when.items():
            rule = _condition_rule(space, other, wanted)
            if rule:
                yield f"search.parameters.{path}.when.{other}: {rule}"


def _condition_rule(space: Space, other: str, wanted: Any) -> str | None:
    """Returns the rule that a condition breaks, with the value that it got; None if it breaks
    none.
    """
    if isinstance(wanted, dict) or wanted == []:
        return f"must be a value, a list of values, `empty` or `not empty`, got {wanted!r}"
    if other not in space.parameters:
        if value_at(space.settings, other, _MISSING) is not _MISSING:
            return None
        known = [*space.parameters, *_paths(space.settings)]
        close = difflib.get_close_matches(other, known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        return f"must be a searched parameter or a setting of the trial, got neither.{hint}"
    parent = space.parameters[other]
    # a drawn real number practically never equals a given one
    if parent.kind == "float":
        return f"must not be a condition on a float range, got {wanted!r}. Use choice or int"
    if parent.kind == "subset" and wanted not in ("empty", "not empty"):
        return f"must be `empty` or `not empty` for a subset, got {wanted!r}"
    each = wanted if isinstance(wanted, list) else [wanted]
    never = [one for one in each if not any(holds(one, value) for value in _values(space, other))]
    return f"must be possible values, got {never}. Values: {_shown(parent)}" if never else None


def _values(space: Space, path: str) -> Iterator[Any]:
    """Yields values of a parameter that suffice to decide whether a condition on it can hold; these
    include its value in the trial if the parameter may stay undrawn.
    """
    parameter = space.parameters[path]
    if parameter.when:
        yield value_at(space.settings, path)
    yield from (
        extremes(parameter)
        if parameter.int_ is None
        else range(parameter.int_[0], parameter.int_[1] + 1)
    )


def _shown(parameter: Parameter) -> list[Any]:
    return list(parameter.drawn_from(parameter.kind) or ())


def _paths(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")


def _budget(search: Search, space: Space) -> Iterator[str]:
    if search.trials is not None and len(search.enqueue) > search.trials:
        yield (
            f"search.trials: must be at least the number of enqueued trials, "
            f"{len(search.enqueue)}, got {search.trials}"
        )
    if search.sampler.grid is None:
        return
    endless = [
        path
        for path, parameter in space.parameters.items()
        if parameter.float_ and parameter.points is None
    ]
    for path in endless:
        low_high = list(space.parameters[path].float_ or ())
        yield (
            f"search.parameters.{path}: must have `points` for a grid, got only the float range "
            f"{low_high}. Add points: 5"
        )
    if not endless and not space.unordered and num_cells(space) is None:
        yield (
            f"search.sampler.grid: must have at most {MAX_CELLS} cells, got more. Use tpe or "
            "random, or narrow the ranges"
        )


def _points_that_fail(study: Study, space: Space) -> list[str]:
    """Returns the problems of the points that are not valid trials, each rule of a path once."""
    found: dict[str, str] = {}
    for point in points_to_try(space):
        try:
            study.trial_with(point)
        except ConfigError as error:
            for problem in error.problems:
                found.setdefault(problem.split(", got ")[0], _attributed(problem, point))
    return list(found.values())


def _attributed(problem: str, point: Point) -> str:
    """Returns a problem of a trial as a problem of the parameter that causes it, or of the point if
    no single parameter does.
    """
    path, rule = problem.removeprefix("trial.").split(": ", 1)
    if any(f"{path}.".startswith(f"{drawn}.") for drawn in point) or rule.startswith(
        "no such setting"
    ):
        return "search.parameters." + problem.removeprefix("trial.")
    values = ", ".join(f"{drawn}={value!r}" for drawn, value in point.items())
    return f"search.parameters: every point must be a valid trial, got {values} with {problem}"


def _random_point(space: Space, chance: random.Random, forced: Mapping[str, Any]) -> Point:
    """Returns a random point with some values forced.

    A forced parameter is drawn only if its conditions hold, so this tries up to 20 points. If no
    point draws all of them, it returns the first.
    """

    def suggest(path: str, parameter: Parameter) -> Any:
        return forced[path] if path in forced else _random_value(parameter, chance)

    tries = [draw(space, suggest) for _ in range(20)]
    return next((point for point in tries if forced.keys() <= point.keys()), tries[0])


def _random_value(parameter: Parameter, chance: random.Random) -> Any:
    """Returns a random value; each end of a range is as likely as all values in between."""
    if parameter.float_ is not None:
        return chance.choice([*parameter.float_, chance.uniform(*parameter.float_)])
    if parameter.int_ is not None:
        return chance.choice([*parameter.int_, chance.randint(*parameter.int_)])
    if parameter.choice is not None:
        return chance.choice(parameter.choice)
    return [member for member in parameter.subset or () if chance.random() < 0.5]
