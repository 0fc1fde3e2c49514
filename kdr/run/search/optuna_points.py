"""Points of a search space in Optuna's terms, and back.

Optuna knows floats, integers and categories of plain values. A choice becomes a category of JSON
texts, and a subset one yes-or-no category per member.
"""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdr.config.canonical import canonical_json
from kdr.config.search import Parameter
from kdr.plan.given_point import OutsideSpaceError, point_of
from kdr.plan.known import End, KnownTrial
from kdr.plan.points import Point, Space, Suggest

STATES: dict[End, TrialState] = {
    "completed": TrialState.COMPLETE,
    "stopped_early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial ended -> its state in Optuna."""

Values = Mapping[str, object]
"""Values of settings by path."""


def suggest_from(asked: optuna.Trial) -> Suggest:
    """Returns a function that asks Optuna for the value of a parameter."""

    def suggest(path: str, parameter: Parameter) -> Any:
        if parameter.float_ is not None:
            return asked.suggest_float(path, *parameter.float_, log=parameter.log)
        if parameter.int_ is not None:
            return asked.suggest_int(path, *parameter.int_, log=parameter.log)
        if parameter.choice is not None:
            label = asked.suggest_categorical(path, [_label(member) for member in parameter.choice])
            return next(member for member in parameter.choice if _label(member) == label)
        # a yes or no per member: with a category per subset, Optuna could not see what two subsets
        # share
        return [
            member
            for member in parameter.subset or ()
            if asked.suggest_categorical(_member_name(path, member), [False, True])
        ]

    return suggest


def optuna_params(space: Space, point: Values) -> dict[str, Any]:
    """Returns Optuna's parameters of a point.

    Raises:
        OutsideSpaceError: if the point is outside the space.
    """
    return _encoded(space, point)[0]


def ended_trial(space: Space, known: KnownTrial) -> FrozenTrial | None:
    """Returns an ended trial in the form Optuna stores; None if this space cannot have drawn it."""
    if known.parameters is None:
        return None
    try:
        params, distributions = _encoded(space, known.parameters)
    except OutsideSpaceError:
        return None
    return create_trial(
        state=STATES[known.end],
        value=_value(known),
        params=params,
        distributions=distributions,
        intermediate_values=dict(known.intermediate),
        user_attrs={"key": known.key},
    )


def _encoded(space: Space, values: Values) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    params: Point = {}
    distributions: dict[str, BaseDistribution] = {}
    for path, value in point_of(space, values).items():
        parameter = space.parameters[path]
        distributions |= _distributions(path, parameter)
        if parameter.subset is not None:
            params |= {_member_name(path, member): member in value for member in parameter.subset}
        else:
            params[path] = _label(value) if parameter.choice is not None else value
    return params, distributions


def _distributions(path: str, parameter: Parameter) -> dict[str, BaseDistribution]:
    """Returns Optuna's distributions of a parameter: one per member of a subset, otherwise one."""
    if parameter.float_ is not None:
        return {path: FloatDistribution(*parameter.float_, log=parameter.log)}
    if parameter.int_ is not None:
        return {path: IntDistribution(*parameter.int_, log=parameter.log)}
    if parameter.choice is not None:
        return {path: CategoricalDistribution(tuple(map(_label, parameter.choice)))}
    return {
        _member_name(path, member): CategoricalDistribution((False, True))
        for member in parameter.subset or ()
    }


def _value(known: KnownTrial) -> float | None:
    """Returns the value by which Optuna ranks a trial. A pruned trial gets its last intermediate
    value, as in `Study.tell` (Optuna 5).
    """
    if known.end == "stopped_early" and known.intermediate:
        return known.intermediate[max(known.intermediate)]
    return known.value if known.end == "completed" else None


def _label(member: object) -> str:
    """Returns a choice's member as text: Optuna stores no lists, and treats 1 and true as equal."""
    return canonical_json(member)


def _member_name(path: str, member: object) -> str:
    return f"{path}[{member}]"
