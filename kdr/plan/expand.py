"""What a study is going to run, before anything runs: its trials, its parameters, what is known
already, and what looks wrong.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, get_args

from kdr.config.ablation import Ablation
from kdr.config.canonical import value_text
from kdr.config.detector import BackboneName
from kdr.config.search import Parameter, Search
from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.plan.arm_checks import check_design
from kdr.plan.designs import arm_points, arms_of, designed_arms, identity, left_out_arms, meets
from kdr.plan.given_point import enqueued_points
from kdr.plan.points import Point, Space, grid, num_cells, space_of
from kdr.plan.space import check_space

_BY_SIZE = (
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "resnet101",
    "resnet152",
    "wide_resnet50_2",
    "resnext101_64x4d",
    "resnext101_32x8d",
    "wide_resnet101_2",
)
assert set(_BY_SIZE) == set(get_args(BackboneName))


@dataclass(frozen=True)
class ParameterRow:
    """One searched setting, in words for a table."""

    path: str
    kind: str
    """float, int, choice or subset; with `log` for a log scale."""
    values: str
    """The range, or the members."""
    condition: str
    """When it is drawn; empty: always."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm of an ablation."""

    name: str
    changes: Mapping[str, Any]
    """What sets it apart from the study's trial, by path."""
    is_reference: bool
    """Whether it is the one that the others are compared with."""
    same_as: str | None
    """The arm before it that is the same trial; the two are run once."""
    num_known: int | None
    """Seeds of which the trial is known; None if that cannot be told here."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study is going to run."""

    study: Study
    base: TrialConfig
    """The trial that others are told apart from: the study's own, with the changes of an ablation's
    baseline."""
    teacher: TrialConfig | None
    """The trial that trains the teacher; None if no teacher is trained."""
    num_trials: int | None
    """Trials that the study runs at most, without its teacher; None where only hours or GPU-hours
    limit it."""
    num_cells: int | None
    """Points of the search space; None where it is infinite, very large, or where nothing is
    searched."""
    parameters: tuple[ParameterRow, ...]
    num_certain: int
    """Trials that are sure to be asked for: the one trial, the cells of a grid, or the enqueued
    points."""
    num_known: int | None
    """How many of the certain trials are known; None if that cannot be told here, without the data
    at hand."""
    missing: tuple[TrialConfig, ...]
    """The certain trials that are not known, each once; all of them where that cannot be told
    here."""
    teacher_known: bool | None
    """Whether every teacher is trained already; None if there is none to train, or that cannot be
    told here."""
    warnings: tuple[str, ...]
    arms: tuple[ArmPlan, ...] = ()
    """Of an ablation, the reference first."""
    left_out: tuple[str, ...] = ()
    """Names of the design's arms that are left out."""


def expand_study(
    study: Study,
    *,
    make_trial: Callable[[TrialConfig], Trial] | None = None,
    known: Set[str] = frozenset(),
) -> StudyPlan:
    """The plan of a study.

    Args:
        study: the study, read and checked.
        make_trial: gives a trial its identity; None where the data is not at hand.
        known: keys of completed trials.

    Raises:
        ConfigError: if the search space has points that cannot run.
    """
    check_space(study)
    check_design(study)
    space = space_of(study)
    certain = [study.trial_with(point) for point in _certain_points(study, space)]
    keys = [make_trial(config).key for config in certain] if make_trial else None
    unique = dict(zip(keys or map(identity, certain), certain, strict=True))
    base = study.trial_with(study.ablation.baseline) if study.ablation else study.base
    teachers = list(
        {
            identity(teacher): teacher
            for config in (base, *certain)
            if (teacher := config.teacher_trial())
        }.values()
    )
    return StudyPlan(
        study=study,
        base=base,
        teacher=next(iter(teachers), None),
        num_trials=_num_trials(study.search, space) if study.search else len(unique),
        num_cells=num_cells(space) if study.search else None,
        parameters=tuple(_row(path, space.parameters[path]) for path in space.parameters),
        num_certain=len(unique),
        num_known=len(known & unique.keys()) if make_trial else None,
        missing=tuple(config for key, config in unique.items() if key not in known),
        teacher_known=(
            all(make_trial(teacher).key in known for teacher in teachers)
            if make_trial and teachers
            else None
        ),
        warnings=tuple(_warnings(study, space)),
        arms=tuple(_arm_plans(study, known, keys)),
        left_out=(
            tuple(arm.name for arm in left_out_arms(study.ablation)) if study.ablation else ()
        ),
    )


def _arm_plans(study: Study, known: Set[str], keys: Sequence[str] | None) -> Iterator[ArmPlan]:
    """The arms of an ablation; `keys` are those of its points: all arms of a seed, then those of
    the next.
    """
    arms = arms_of(study.ablation) if study.ablation else ()
    first: dict[str, str] = {}
    for index, arm in enumerate(arms):
        same_as = first.setdefault(identity(study.trial_with(arm.changes)), arm.name)
        yield ArmPlan(
            name=arm.name,
            changes=arm.changes,
            is_reference=arm.is_reference,
            same_as=same_as if same_as != arm.name else None,
            num_known=(
                None if keys is None else sum(key in known for key in keys[index :: len(arms)])
            ),
        )


def _certain_points(study: Study, space: Space) -> list[Point]:
    if study.ablation is not None:
        return [point for _, point in arm_points(study.ablation)]
    if study.search is None:
        return [{}]
    enqueued = enqueued_points(study, space)
    cells = list(grid(space)) if study.search.sampler.grid else []
    return enqueued + [cell for cell in cells if cell not in enqueued]


def _num_trials(search: Search, space: Space) -> int | None:
    limits = [limit for limit in (search.trials, num_cells(space)) if limit is not None]
    return min(limits, default=None)


def _row(path: str, parameter: Parameter) -> ParameterRow:
    members = list(parameter.drawn_from(parameter.kind) or ())
    values = (
        [f"{members[0]:g} to {members[1]:g}"]
        if parameter.kind in ("float", "int")
        else list(map(value_text, members))
    )
    if parameter.at_least:
        values.append(f"at least {parameter.at_least}")
    if parameter.points:
        values.append(f"{parameter.points} points")
    conditions = [f"{other} {_condition(wanted)}" for other, wanted in parameter.when.items()]
    return ParameterRow(
        path=path,
        kind=parameter.kind + (" log" if parameter.log else ""),
        values=", ".join(values),
        condition=" and ".join(conditions),
    )


def _condition(wanted: Any) -> str:
    if wanted in ("empty", "not empty"):
        return str(wanted)
    return "is " + " or ".join(map(value_text, wanted if isinstance(wanted, list) else [wanted]))


def _warnings(study: Study, space: Space) -> Iterator[str]:
    base, search = study.base, study.search
    num_train = _num_train(base)
    if num_train is not None and base.training.batch_size > num_train:
        yield (
            f"trial.training.batch_size: {base.training.batch_size} is more than the {num_train} "
            "training images, so that every epoch is one smaller step"
        )
    teacher, student = base.teacher, base.student
    if (
        base.needs_teacher
        and teacher
        and _BY_SIZE.index(teacher.backbone) < _BY_SIZE.index(student.backbone)
    ):
        yield (
            f"trial.teacher.backbone: {teacher.backbone} is smaller than the student's "
            f"{student.backbone}"
        )
    if study.ablation is not None:
        yield from _ablation_warnings(study.ablation, base)
    if search is None:
        return
    if not base.data.search_split and "data.search_split" not in space.parameters:
        yield (
            "trial.data.search_split: is 0, so that the search selects on the validation set. "
            "Hold images out of the training set, for example search_split: 0.1"
        )
    if "seed" in space.parameters:
        yield "search.parameters.seed: a search over seeds selects luck. Leave it out"
    yield from _stop_early_warnings(study)
    cells = num_cells(space)
    if cells is not None and search.trials is not None and search.trials > cells:
        yield (
            f"search.trials: {search.trials} is more than the {cells} points of the space; the "
            "search ends when they are done"
        )


def _ablation_warnings(ablation: Ablation, base: TrialConfig) -> Iterator[str]:
    if len(ablation.all_seeds) < 2:
        yield (
            "ablation.seeds: is one seed, which leaves differences without intervals. Name at "
            "least 2, or better 8"
        )
    if base.data.search_split:
        yield (
            f"trial.data.search_split: is {base.data.search_split:g}, so that the arms are "
            "compared on images held out of the training set, on which settings were chosen. "
            "Leave it out to report on the validation set"
        )
    arms = list(designed_arms(ablation))
    for index, cell in enumerate(ablation.leave_out):
        if not any(meets(arm, cell) for arm in arms):
            yield f"ablation.leave_out.{index}: leaves nothing out of the design {ablation.design}"


def _stop_early_warnings(study: Study) -> Iterator[str]:
    assert study.search is not None
    epochs = study.search.parameters.get("training.epochs")
    most = max(
        [study.base.training.epochs] if epochs is None else epochs.drawn_from(epochs.kind) or ()
    )
    for name in ("asha", "median"):
        rule = getattr(study.search.stop_early, name)
        if rule is not None and rule.grace_epochs >= most:
            yield (
                f"search.stop_early.{name}.grace_epochs: {rule.grace_epochs} is not below the "
                f"{most} epochs of a trial, so that none is stopped early"
            )


def _num_train(config: TrialConfig) -> int | None:
    """Images that are left for training; None where the settings do not tell."""
    data = config.data
    if data.dataset != "shapes":
        return None
    return data.num_train - round(
        data.search_split if data.search_split >= 1 else data.search_split * data.num_train
    )
