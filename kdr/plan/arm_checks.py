"""Checks before launch that every arm of an ablation is a valid trial and comparable."""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

from kdr.config.ablation import BASELINE, Ablation
from kdr.config.canonical import canonical_json
from kdr.config.study import Study, batch_problems
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError
from kdr.plan.designs import Arm, arm_with, arms_of, combined, identity, is_inside, left_out_arms

MAX_ARMS = 1000
"""Maximum number of arms in a factorial design. All of them are checked before launch, then
trained."""


def check_design(study: Study) -> None:
    """Checks that every arm of an ablation is a valid trial and comparable with the others.

    Raises:
        ConfigError: with one line for each problem. A problem of a level is reported once, however
            many arms have that level.
    """
    ablation = study.ablation
    if ablation is None:
        return
    # Each check needs the previous ones to have passed: arms are built only if there are not too
    # many, and compared only if all of them are valid.
    problems = list(_too_many(ablation))
    if not problems:
        arms = arms_of(ablation)
        problems = [
            *_left_out(ablation),
            *_contrast(ablation, arms),
            *dict.fromkeys(_arms_that_fail(study, ablation, arms)),
        ]
    if not problems:
        problems = [*_pointless(study, ablation, arms), *_incomparable(study, arms)]
    if problems:
        raise ConfigError(problems)


def _too_many(ablation: Ablation) -> Iterator[str]:
    num_arms = math.prod(1 + len(levels) for levels in ablation.factors.values())
    if ablation.design == "factorial" and num_arms > MAX_ARMS:
        yield (
            f"ablation.factors: must make at most {MAX_ARMS} arms in a factorial design, got "
            f"{num_arms}. Use one_at_a_time"
        )


def _left_out(ablation: Ablation) -> Iterator[str]:
    for arm in left_out_arms(ablation):
        if arm.is_reference or arm.name == BASELINE:
            yield (
                f"ablation.leave_out: must keep the arm '{arm.name}', which others are "
                "compared with"
            )


def _contrast(ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    names = [arm.name for arm in arms if not arm.is_reference]
    if ablation.contrast is not None and ablation.contrast not in names:
        yield (
            f"ablation.contrast: must be an arm other than the reference, got "
            f"{ablation.contrast!r}. Arms: {'; '.join(names)}"
        )


def _arms_that_fail(study: Study, ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Yields the problems of the arms.

    A problem that a level causes on its own is attributed to that level, any other to the smallest
    arm that has it: larger arms with the same levels inherit it.
    """
    reported: list[tuple[str, frozenset[tuple[str, str]]]] = []
    # cached, because a factorial design has each level in many arms
    alone = functools.cache(lambda place: _problems_at(study, ablation, place))
    for arm in arms:
        levels = frozenset(arm.changed_levels.items())
        for problem in [*_clashes(ablation, arm)] or _problems_of(study, arm.changes):
            causes = [
                place
                for place in _places(ablation, arm)
                if _rule(problem) in map(_rule, alone(place))
            ]
            if causes:
                yield _attributed(problem, causes[0], ablation)
            elif not any(rule == _rule(problem) and fewer <= levels for rule, fewer in reported):
                reported.append((_rule(problem), levels))
                yield (
                    f"ablation: the arm '{arm.name}' must be a valid trial, got {problem}."
                    f"{_fix(arm)}"
                )


def _places(ablation: Ablation, arm: Arm) -> list[str]:
    """Returns the places in the study file that an arm's changes come from, the baseline first."""
    own = [f"factors.{factor}.{level}" for factor, level in arm.changed_levels.items()]
    return ["baseline", *own, *([f"arms.{arm.name}"] if arm.name in ablation.arms else [])]


def _problems_at(study: Study, ablation: Ablation, place: str) -> list[str]:
    """Returns the problems of one group of changes alone, on top of the baseline."""
    return _problems_of(study, combined(ablation.baseline, ablation.places()[place]))


def _problems_of(study: Study, changes: Mapping[str, Any]) -> list[str]:
    try:
        return batch_problems(study.resources.workers, study.trial_with(changes))
    except ConfigError as error:
        return list(error.problems)


def _attributed(problem: str, place: str, ablation: Ablation) -> str:
    path = problem.removeprefix("trial.").split(": ", 1)[0]
    if any(is_inside(path, changed) for changed in ablation.places()[place]):
        return f"ablation.{place}.{problem.removeprefix('trial.')}"
    return f"ablation.{place}: must make a valid trial, got {problem}"


def _rule(problem: str) -> str:
    return problem.split(", got ")[0]


def _fix(arm: Arm) -> str:
    if arm.is_reference or not arm.changed_levels:
        return ""
    return (
        " To skip it, add to ablation.leave_out: "
        f"{{{', '.join(f'{factor}: {level}' for factor, level in arm.changed_levels.items())}}}"
    )


def _clashes(ablation: Ablation, arm: Arm) -> Iterator[str]:
    """Yields a line for each setting that two factors of an arm set to different values: the result
    would depend on the order of the factors.
    """
    for (one, level), (other, other_level) in itertools.combinations(arm.changed_levels.items(), 2):
        mine, its = ablation.factors[one][level], ablation.factors[other][other_level]
        for path, other_path in itertools.product(mine, its):
            overlap = is_inside(path, other_path) or is_inside(other_path, path)
            if overlap and not (
                path == other_path and canonical_json(mine[path]) == canonical_json(its[other_path])
            ):
                inner = max(path, other_path, key=len)
                yield (
                    f"trial.{inner}: must be changed by one factor only, got {one}={level} and "
                    f"{other}={other_level}"
                )


def _pointless(study: Study, ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Yields a line for each level and arm that changes nothing in the baseline."""
    for factor, levels in ablation.factors.items():
        for level in levels:
            # A level may matter only together with a level of another factor, so it is pointless
            # only if no arm differs from its twin without the level.
            having = [arm for arm in arms if arm.levels[factor] == level]
            back = [arm_with(ablation, arm.levels | {factor: BASELINE}) for arm in having]
            if having and all(
                _same(study, arm, twin) for arm, twin in zip(having, back, strict=True)
            ):
                yield f"ablation.factors.{factor}.{level}: {_NO_DIFFERENCE}"
    for arm in arms:
        if arm.name in ablation.arms and _same(study, arm, arms[0]):
            yield f"ablation.arms.{arm.name}: {_NO_DIFFERENCE}"


_NO_DIFFERENCE = (
    "must change the baseline, got settings that it already has, or that have no effect with its "
    "other settings"
)


def _same(study: Study, arm: Arm, other: Arm) -> bool:
    try:
        return identity(study.trial_with(arm.changes)) == identity(study.trial_with(other.changes))
    except ConfigError:
        return False  # `other` is not in the design, and is not a valid trial


def _incomparable(study: Study, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Yields a line for each difference of an arm from the reference that makes the two
    incomparable.
    """
    reference, *others = ((arm.name, _conditions(study.trial_with(arm.changes))) for arm in arms)
    for name, conditions in others:
        for path, value in conditions.items():
            if value != (wanted := reference[1].get(path)):
                yield (
                    f"ablation: the arm '{name}' must have the same trial.{path} as "
                    f"'{reference[0]}', {wanted}, got {value}. Arms with different budgets or "
                    "validation images cannot be compared"
                )


def _conditions(config: TrialConfig) -> dict[str, Any]:
    """Returns by path the settings that determine the number of training images, and the validation
    images.
    """
    free = {"augment", "aspect_ratio_grouping", "resize", "train_images", "train_annotations"}
    data = config.data.model_dump(mode="json", exclude=free)
    return {
        "training.epochs": config.training.epochs,
        **{f"data.{name}": value for name, value in data.items()},
    }
