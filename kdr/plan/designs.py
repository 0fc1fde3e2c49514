"""The arms of an ablation, from its design, and its trials: every arm with every seed."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kdr.config.ablation import BASELINE, Ablation
from kdr.config.trial import TrialConfig
from kdr.plan.keys import make_trial

NOTHING = "nothing"
"""Name of the arm of `add_one_in` that has every factor changed."""

Levels = dict[str, str]
"""Factor -> level, for every factor of the ablation; `baseline` if it is unchanged."""


@dataclass(frozen=True)
class Arm:
    """One variant of the trial, compared with the others over the same seeds."""

    name: str
    """`baseline`; its changed levels, such as `review=off, weight=low`; `nothing` or `+review` in
    `add_one_in`; its own name in the design `arms`."""
    levels: Levels
    """The level of every factor; empty in the design `arms`."""
    changes: dict[str, Any]
    """Changes to the study's trial, by path: those of the baseline and the arm's own."""
    is_reference: bool = False
    """Whether the other arms are compared with this one."""

    @property
    def changed_levels(self) -> Levels:
        """The levels other than `baseline`, by factor."""
        return {factor: level for factor, level in self.levels.items() if level != BASELINE}


def arms_of(ablation: Ablation) -> tuple[Arm, ...]:
    """Returns the arms of an ablation without those in `leave_out`, the reference first."""
    return tuple(arm for arm in designed_arms(ablation) if not is_left_out(ablation, arm))


def left_out_arms(ablation: Ablation) -> tuple[Arm, ...]:
    """Returns the arms of the design that `leave_out` skips."""
    return tuple(arm for arm in designed_arms(ablation) if is_left_out(ablation, arm))


def designed_arms(ablation: Ablation) -> Iterator[Arm]:
    """Yields every arm of the design, including those in `leave_out`, the reference first."""
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
    else:  # leave_one_out is one_at_a_time with factors whose levels switch something off
        yield arm_with(ablation, unchanged, is_reference=True)
        for factor, alone in ablation.factors.items():
            for level in alone:
                yield arm_with(ablation, unchanged | {factor: level})


def arm_with(
    ablation: Ablation, levels: Levels, name: str | None = None, *, is_reference: bool = False
) -> Arm:
    """Returns the arm with these levels; its name defaults to its changed levels."""
    changed = {factor: level for factor, level in levels.items() if level != BASELINE}
    own = [ablation.factors[factor][level] for factor, level in changed.items()]
    name = name or ", ".join(f"{factor}={level}" for factor, level in changed.items()) or BASELINE
    return Arm(name, levels, combined(ablation.baseline, *own), is_reference)


def combined(*groups: Mapping[str, Any]) -> dict[str, Any]:
    """Merges changes by path. Later groups win: they also drop earlier changes inside a path that
    they set.
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
    """Returns whether a path equals another path, or is inside its group."""
    return f"{path}.".startswith(f"{other}.")


def is_left_out(ablation: Ablation, arm: Arm) -> bool:
    """Returns whether `leave_out` skips an arm."""
    return any(meets(arm, cell) for cell in ablation.leave_out)


def meets(arm: Arm, cell: Mapping[str, str]) -> bool:
    """Returns whether an arm has all levels of an entry of `leave_out`."""
    return all(arm.levels.get(factor) == level for factor, level in cell.items())


def arm_points(ablation: Ablation) -> list[tuple[Arm, dict[str, Any]]]:
    """Returns every arm with every seed, as changes to the study's trial by path.

    All arms of a seed come before the next seed: the comparison is paired by seed, so a study that
    is interrupted early has complete pairs.
    """
    arms = arms_of(ablation)
    return [(arm, {**arm.changes, "seed": seed}) for seed in ablation.all_seeds for arm in arms]


def identity(config: TrialConfig) -> str:
    """Returns a stand-in for a trial's key that needs no data. Like a key, it ignores settings that
    have no effect.
    """
    return make_trial(config, data_id=config.data.model_dump_json(), weights_id=str).key
