"""Whether an ablation can run and can be compared: every arm is tried before launch."""

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
"""Most arms of a factorial design."""


def check_design(study: Study) -> None:
    """Checks that every arm of an ablation is a trial that can run, and can be compared with the
    others.

    Raises:
        ConfigError: naming every problem, one line each; a problem of a level is told once,
            whatever arms have it.
    """
    ablation = study.ablation
    if ablation is None:
        return
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
            f"ablation.factors: a factorial design has at most {MAX_ARMS} arms, got {num_arms}. "
            "Use one_at_a_time"
        )


def _left_out(ablation: Ablation) -> Iterator[str]:
    for arm in left_out_arms(ablation):
        if arm.is_reference or arm.name == BASELINE:
            yield (
                f"ablation.leave_out: must keep the arm '{arm.name}', which others are compared "
                "with, got it left out"
            )


def _contrast(ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    names = [arm.name for arm in arms if not arm.is_reference]
    if ablation.contrast is not None and ablation.contrast not in names:
        yield (
            f"ablation.contrast: must be an arm that is compared, got {ablation.contrast!r}. Arms: "
            f"{'; '.join(names)}"
        )


def _arms_that_fail(study: Study, ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    """The problems of the arms: told of the level that has one by itself, else of the smallest arm
    that has it.
    """
    told: list[tuple[str, frozenset[tuple[str, str]]]] = []
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
                yield _told_of(problem, causes[0], ablation)
            elif not any(rule == _rule(problem) and fewer <= levels for rule, fewer in told):
                told.append((_rule(problem), levels))
                yield (
                    f"ablation: the arm '{arm.name}' must be a trial, got {problem}.{_way_out(arm)}"
                )


def _places(ablation: Ablation, arm: Arm) -> list[str]:
    """Where an arm's changes are written, the baseline's first."""
    own = [f"factors.{factor}.{level}" for factor, level in arm.changed_levels.items()]
    return ["baseline", *own, *([f"arms.{arm.name}"] if arm.name in ablation.arms else [])]


def _problems_at(study: Study, ablation: Ablation, place: str) -> list[str]:
    """The problems of one group of changes by itself, those of the baseline left out."""
    return _problems_of(study, combined(ablation.baseline, ablation.places()[place]))


def _problems_of(study: Study, changes: Mapping[str, Any]) -> list[str]:
    try:
        return batch_problems(study.resources.workers, study.trial_with(changes))
    except ConfigError as error:
        return list(error.problems)


def _told_of(problem: str, place: str, ablation: Ablation) -> str:
    path = problem.removeprefix("trial.").split(": ", 1)[0]
    if any(is_inside(path, changed) for changed in ablation.places()[place]):
        return f"ablation.{place}.{problem.removeprefix('trial.')}"
    return f"ablation.{place}: must give a trial, got {problem}"


def _rule(problem: str) -> str:
    return problem.split(", got ")[0]


def _way_out(arm: Arm) -> str:
    if arm.is_reference or not arm.changed_levels:
        return ""
    return (
        " It can be left out: "
        f"{{{', '.join(f'{factor}: {level}' for factor, level in arm.changed_levels.items())}}}"
    )


def _clashes(ablation: Ablation, arm: Arm) -> Iterator[str]:
    """Settings that two factors of an arm change to different values: which of them is meant would
    depend on their order.
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
                    f"trial.{inner}: must be changed by one factor, got {one}={level} and "
                    f"{other}={other_level}"
                )


def _pointless(study: Study, ablation: Ablation, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Levels and arms with which nothing is different from the baseline."""
    for factor, levels in ablation.factors.items():
        for level in levels:
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
    "must change the baseline, got settings that it has already, or that have no effect beside its "
    "others"
)


def _same(study: Study, arm: Arm, other: Arm) -> bool:
    try:
        return identity(study.trial_with(arm.changes)) == identity(study.trial_with(other.changes))
    except ConfigError:
        return False  # the other one is no arm of the design, and no trial either


def _incomparable(study: Study, arms: tuple[Arm, ...]) -> Iterator[str]:
    """Arms with other budgets, or measured on other images, than the reference."""
    reference, *others = ((arm.name, _conditions(study.trial_with(arm.changes))) for arm in arms)
    for name, conditions in others:
        for path, value in conditions.items():
            if value != (wanted := reference[1].get(path)):
                yield (
                    f"ablation: the arm '{name}' must have trial.{path} of '{reference[0]}', "
                    f"{wanted}, got {value}. Arms with other budgets, or measured on other "
                    "images, cannot be compared"
                )


def _conditions(config: TrialConfig) -> dict[str, Any]:
    """What decides how many images a trial sees, and on which it is evaluated; by path."""
    free = {"augment", "aspect_ratio_grouping", "resize", "train_images", "train_annotations"}
    data = config.data.model_dump(mode="json", exclude=free)
    return {
        "training.epochs": config.training.epochs,
        **{f"data.{name}": value for name, value in data.items()},
    }
