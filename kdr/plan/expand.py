"""The plan of a study, before anything runs: trials, parameters, known results, warnings."""

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

# from small to large
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
    """A searched setting as text for a table."""

    path: str
    kind: str
    """float, int, choice or subset; ` log` is appended for a log scale."""
    values: str
    """The range, or the members."""
    condition: str
    """Condition under which the parameter is drawn; empty: always drawn."""


@dataclass(frozen=True)
class ArmPlan:
    """One arm of an ablation."""

    name: str
    changes: Mapping[str, Any]
    """Changes to the study's trial, by path."""
    is_reference: bool
    """Whether the other arms are compared with this one."""
    same_as: str | None
    """An earlier arm with the same trials, which then run only once."""
    num_known: int | None
    """Number of seeds with a known result; None without the data, which keys need."""


@dataclass(frozen=True)
class StudyPlan:
    """The trials that a study will run, and their known results."""

    study: Study
    base: TrialConfig
    """The study's trial, with the changes of the ablation's baseline if there is one."""
    teacher: TrialConfig | None
    """The trial that trains the teacher; None if there is none to train."""
    num_trials: int | None
    """Maximum number of trials, not counting the teacher; None if only hours or GPU-hours limit the
    study."""
    num_cells: int | None
    """Points of the search space; None if it is infinite or very large, or without a search."""
    parameters: tuple[ParameterRow, ...]
    num_certain: int
    """Trials that do not depend on a sampler: the single trial, the arms, the cells of a grid, or
    the enqueued points."""
    num_known: int | None
    """Those of `num_certain` with a known result; None without the data, which keys need."""
    missing: tuple[TrialConfig, ...]
    """Those of `num_certain` without a known result, each once; without the data, all of them."""
    teacher_known: bool | None
    """Whether every teacher is already trained; None if there is none to train, or without the
    data."""
    warnings: tuple[str, ...]
    arms: tuple[ArmPlan, ...] = ()
    """Arms of an ablation, the reference first."""
    left_out: tuple[str, ...] = ()
    """Names of the arms that `ablation.leave_out` skips."""


def expand_study(
    study: Study,
    *,
    make_trial: Callable[[TrialConfig], Trial] | None = None,
    known: Set[str] = frozenset(),
) -> StudyPlan:
    """Returns the plan of a study.

    Args:
        study: the study.
        make_trial: makes a trial, with its key, from its settings; None if the data is not
            available.
        known: keys of completed trials.

    Raises:
        ConfigError: if the search space has points, or the ablation has arms, that are not valid
            trials.
    """
    check_space(study)
    check_design(study)
    space = space_of(study)
    certain = [study.trial_with(point) for point in _certain_points(study, space)]
    keys = [make_trial(config).key for config in certain] if make_trial else None
    # two points or arms may be the same trial, if they differ only in settings without effect
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
    """Yields the plan of each arm.

    Args:
        study: the study.
        known: keys of completed trials.
        keys: keys of the ablation's trials, in the order of `arm_points`: all arms of one seed,
            then all arms of the next.
    """
    arms = arms_of(study.ablation) if study.ablation else ()
    first: dict[str, str] = {}
    for index, arm in enumerate(arms):
        # all arms are compared with the same seeds, so the trials are the same if the settings are
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
    # the search ends when every point of a finite space has been tried
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
            "training images, so each epoch is a single step with a smaller batch"
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
            "trial.data.search_split: is 0, so the search selects on the validation set. Hold out "
            "training images instead, for example search_split: 0.1"
        )
    if "seed" in space.parameters:
        yield "search.parameters.seed: a search over seeds selects by luck. Remove it"
    yield from _stop_early_warnings(study)
    cells = num_cells(space)
    if cells is not None and search.trials is not None and search.trials > cells:
        yield (
            f"search.trials: {search.trials} is more than the {cells} points of the space; the "
            "search ends after these"
        )


def _ablation_warnings(ablation: Ablation, base: TrialConfig) -> Iterator[str]:
    if len(ablation.all_seeds) < 2:
        yield (
            "ablation.seeds: one seed gives no confidence intervals. Use at least 2, preferably 8"
        )
    if base.data.search_split:
        yield (
            f"trial.data.search_split: is {base.data.search_split:g}, so the arms are compared on "
            "held-out training images, on which a search may have chosen the settings. Remove it "
            "to report on the validation set"
        )
    arms = list(designed_arms(ablation))
    for index, cell in enumerate(ablation.leave_out):
        if not any(meets(arm, cell) for arm in arms):
            yield f"ablation.leave_out.{index}: matches no arm of the design {ablation.design}"


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
                f"{most} epochs of a trial, so no trial is stopped early"
            )


def _num_train(config: TrialConfig) -> int | None:
    """Returns the number of images to train on; None if the settings do not determine it."""
    data = config.data
    if data.dataset != "shapes":
        return None
    return data.num_train - round(
        data.search_split if data.search_split >= 1 else data.search_split * data.num_train
    )
