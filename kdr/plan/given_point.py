"""Points that were not drawn: enqueued settings, interrupted trials, results of earlier trials."""

from collections.abc import Mapping
from typing import Any

from kdr.config.canonical import canonical_json
from kdr.config.overrides import value_at
from kdr.config.search import Parameter
from kdr.config.study import Study
from kdr.errors import ConfigError
from kdr.plan.points import Point, Space, Suggest, draw, same


class OutsideSpaceError(ConfigError):
    """A value that this search could not have drawn."""


def given(values: Mapping[str, Any], *, prefix: str = "") -> Suggest:
    """Returns a `suggest` for `draw` that answers with given values.

    Args:
        values: value by path; parameters that are not drawn are ignored.
        prefix: path of these values in the study file, for errors.

    Raises:
        OutsideSpaceError: during the draw, if a value is missing or outside its range.
    """

    def answer(path: str, parameter: Parameter) -> Any:
        if path not in values:
            raise OutsideSpaceError(f"{prefix}{path}: must be given")
        rule = _range_rule(parameter, values[path])
        if rule:
            raise OutsideSpaceError(f"{prefix}{path}: {rule}, got {values[path]!r}")
        return _in_type(parameter, values[path])

    return answer


def point_of(space: Space, values: Mapping[str, Any], *, prefix: str = "") -> Point:
    """Returns the point with the given values.

    Args:
        space: the search space.
        values: value by path, for exactly the parameters that are drawn at this point.
        prefix: path of the values in the study file, for errors.

    Raises:
        OutsideSpaceError: if a value is missing, outside its range, or of a parameter that is not
            drawn.
    """
    point = draw(space, given(values, prefix=prefix))
    undrawn = [path for path in values if path not in point]
    if undrawn:
        raise OutsideSpaceError(
            f"{prefix}{path}: {_undrawn_rule(space, path)}, got {values[path]!r}"
            for path in undrawn
        )
    return point


def enqueued_points(study: Study, space: Space) -> list[Point]:
    """Returns the points of `search.enqueue`. Parameters that an entry leaves out have the trial's
    values.

    Raises:
        ConfigError: with one line for each value outside the space, and each entry that is not a
            valid trial.
    """
    points: list[Point] = []
    problems: list[str] = []
    for index, entry in enumerate(study.search.enqueue if study.search else ()):
        try:
            points.append(_enqueued(study, space, entry, prefix=f"search.enqueue.{index}."))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return points


def _enqueued(study: Study, space: Space, entry: Mapping[str, Any], *, prefix: str) -> Point:
    unknown = [path for path in entry if path not in space.parameters]
    if unknown:
        raise OutsideSpaceError(
            f"{prefix}{path}: {_undrawn_rule(space, path)}, got {entry[path]!r}" for path in unknown
        )
    try:
        settings = study.trial_with(entry).model_dump(mode="json")
    except ConfigError as error:
        raise ConfigError(
            prefix + problem.removeprefix("trial.") for problem in error.problems
        ) from None
    # The second draw repeats the first with the parameters that it drew, and refuses a value of
    # `entry` that is not among them.
    values = {path: value_at(settings, path) for path in space.parameters} | dict(entry)
    drawn = draw(space, given(values, prefix=prefix))
    return point_of(space, {path: values[path] for path in drawn} | dict(entry), prefix=prefix)


def _undrawn_rule(space: Space, path: str) -> str:
    if path not in space.parameters:
        return f"must be one of the searched parameters {', '.join(space.parameters)}"
    return "must be left out, because its `when` does not hold"


def _range_rule(parameter: Parameter, value: Any) -> str | None:
    """Returns the rule that a value of the parameter breaks; None if it breaks none."""
    if parameter.choice is not None:
        return (
            None
            if any(same(member, value) for member in parameter.choice)
            else f"must be one of {list(parameter.choice)}"
        )
    if parameter.subset is not None:
        members = {canonical_json(member) for member in parameter.subset}
        named = [canonical_json(one) for one in value] if isinstance(value, list | tuple) else [""]
        fits = members.issuperset(named) and len(set(named)) == len(named) >= parameter.at_least
        at_least = f" and {parameter.at_least} or more of them" if parameter.at_least else ""
        return (
            None
            if fits
            else f"must be a list of members of {list(parameter.subset)}, each once{at_least}"
        )
    low, high = parameter.drawn_from(parameter.kind) or ()
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        return f"must be in [{low}, {high}]"
    return (
        None
        if parameter.float_ is not None or float(value).is_integer()
        else "must be a whole number"
    )


def _in_type(parameter: Parameter, value: Any) -> Any:
    """Returns the value in the type and order in which a draw would return it."""
    if parameter.choice is not None:
        return next(member for member in parameter.choice if same(member, value))
    if parameter.subset is not None:
        named = {canonical_json(one) for one in value}
        return [member for member in parameter.subset if canonical_json(member) in named]
    return float(value) if parameter.float_ is not None else int(value)
