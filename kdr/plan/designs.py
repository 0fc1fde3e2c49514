"""The arms of an ablation, by its design; and its trials, arms by seeds."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdr.config.ablation import BASELINE, Ablation
from kdr.config.trial import TrialConfig
from kdr.plan.keys import make_trial

NOTHING = "nothing"
"""The arm of `add_one_in` in which every factor is changed."""

Levels = dict[str, str]
"""Factor -> level, for every factor of the ablation; `baseline` where it is unchanged."""


@dataclass(frozen=True)
class Arm:
    """One way to train, compared with the others over the same seeds."""

    name: str
    """`baseline`; the changed factors, as `review=off, weight=low`; in `add_one_in`, `nothing` and
    `+review`; or its own name."""
    levels: Levels
    """The level of every factor; empty in the design `arms`."""
    changes: dict[str, Any]
    """What sets it apart from the study's trial, by path: the changes of the baseline and its
    own."""
    is_reference: bool = False
    """Whether it is the one that the others are compared with."""

    @property
    def changed_levels(self) -> Levels:
        """The levels of the factors that it changes."""
        return {factor: level for factor, level in self.levels.items() if level != BASELINE}


def arms_of(ablation: Ablation) -> tuple[Arm, ...]:
    """The arms of an ablation, the reference first; those that are left out are not among them."""
    return tuple(arm for arm in designed_arms(ablation) if not is_left_out(ablation, arm))


def left_out_arms(ablation: Ablation) -> tuple[Arm, ...]:
    """The arms of the design that are left out."""
    return tuple(arm for arm in designed_arms(ablation) if is_left_out(ablation, arm))


def designed_arms(ablation: Ablation) -> Iterator[Arm]:
    """Every arm of the design, the reference first, those that are left out among them."""
    unchanged = dict.fromkeys(ablation.factors, BASELINE)
    if ablation.design == "arms":
        yield Arm(BASELINE, {}, dict(ablation.baseline), is_reference=True)
        for name, changes in ablation.arms.items():
            yield Arm(name, {}, combined(ablation.baseline, changes))
    elif ablation.design == "add_one_in":
        changed = {factor: level for factor, (level, *_) in ablation.factors.items()}
        yield arm_with(ablation, changed, NOTHING, is_reference=True)
        for factor in ablation.factors:
            yield arm_with(ablation, changed | {factor: BASELINE}, f"+{factor}")
        yield arm_with(ablation, unchanged)
    elif ablation.design == "factorial":
        for levels in itertools.product(
            *((BASELINE, *levels) for levels in ablation.factors.values())
        ):
            cell = dict(zip(ablation.factors, levels, strict=True))
            yield arm_with(ablation, cell, is_reference=cell == unchanged)
    else:
        yield arm_with(ablation, unchanged, is_reference=True)
        for factor, alone in ablation.factors.items():
            for level in alone:
                yield arm_with(ablation, unchanged | {factor: level})


def arm_with(
    ablation: Ablation, levels: Levels, name: str | None = None, *, is_reference: bool = False
) -> Arm:
    """The arm with some levels, named after those that differ from the baseline unless a name is
    given.
    """
    changed = {factor: level for factor, level in levels.items() if level != BASELINE}
    own = [ablation.factors[factor][level] for factor, level in changed.items()]
    name = name or ", ".join(f"{factor}={level}" for factor, level in changed.items()) or BASELINE
    return Arm(name, levels, combined(ablation.baseline, *own), is_reference)


def combined(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by path, later ones over earlier ones: what an earlier one changes inside a later
    one's group is dropped.
    """
    result: dict[str, Any] = {}
    for changes in groups:
        result = {
            path: value
            for path, value in result.items()
            if not any(is_inside(path, new) for new in changes)
        } | dict(changes)
    return result


def is_inside(path: str, other: str) -> bool:
    """Whether a path is another one or lies inside its group."""
    return f"{path}.".startswith(f"{other}.")


def is_left_out(ablation: Ablation, arm: Arm) -> bool:
    """Whether an entry of `leave_out` meets an arm."""
    return any(meets(arm, cell) for cell in ablation.leave_out)


def meets(arm: Arm, cell: Mapping[str, str]) -> bool:
    """Whether an arm has all the levels of an entry of `leave_out`."""
    return all(arm.levels.get(factor) == level for factor, level in cell.items())


def arm_points(ablation: Ablation) -> list[tuple[Arm, dict[str, Any]]]:
    """Arms by seeds, each with what sets it apart from the study's trial, by path.

    All arms of a seed come before the next seed, so that complete blocks come early.
    """
    arms = arms_of(ablation)
    return [(arm, {**arm.changes, "seed": seed}) for seed in ablation.all_seeds for arm in arms]


def identity(config: TrialConfig) -> str:
    """A stand-in for a trial's key, without the data: equal for settings that differ only in what
    has no effect.
    """
    return make_trial(config, data_id=config.data.model_dump_json(), weights_id=str).key
