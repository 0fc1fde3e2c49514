"""What a study is going to run, before anything runs: its trials, its parameters, what is known already, and what looks wrong."""

import json
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import Any, get_args

from kdr.config.detector import BackboneName
from kdr.config.search import Parameter
from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
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
class StudyPlan:
    """What a study is going to run."""

    study: Study
    teacher: TrialConfig | None
    """The trial that trains the base trial's teacher; None if no teacher is trained."""
    num_trials: int | None
    """Trials that the study runs at most, without its teacher; None where only hours or GPU-hours limit it."""
    num_cells: int | None
    """Points of the search space; None where it is infinite, very large, or where nothing is searched."""
    parameters: tuple[ParameterRow, ...]
    num_certain: int
    """Trials that are sure to be asked for: the one trial, the cells of a grid, or the enqueued points."""
    num_known: int | None
    """How many of the certain trials are known; None if that cannot be told here, without the data at hand."""
    teacher_known: bool | None
    """Whether the teacher is trained already; None if there is none to train, or that cannot be told here."""
    warnings: tuple[str, ...]


def expand_study(
    study: Study, *, make_trial: Callable[[TrialConfig], Trial] | None = None, known: Set[str] = frozenset()
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
    space = space_of(study)
    certain = [study.trial_with(point) for point in _certain_points(study, space)]
    teacher = study.base.teacher_trial()
    return StudyPlan(
        study=study,
        teacher=teacher,
        num_trials=_num_trials(study, space),
        num_cells=num_cells(space) if study.search else None,
        parameters=tuple(_row(path, space.parameters[path]) for path in space.parameters),
        num_certain=len(certain),
        num_known=len({trial.key for trial in map(make_trial, certain)} & known) if make_trial else None,
        teacher_known=make_trial(teacher).key in known if make_trial and teacher else None,
        warnings=tuple(_warnings(study, space)),
    )


def _certain_points(study: Study, space: Space) -> list[Point]:
    if study.search is None:
        return [{}]
    enqueued = enqueued_points(study, space)
    cells = list(grid(space)) if study.search.sampler.grid else []
    return enqueued + [cell for cell in cells if cell not in enqueued]


def _num_trials(study: Study, space: Space) -> int | None:
    if study.search is None:
        return 1
    limits = [limit for limit in (study.search.trials, num_cells(space)) if limit is not None]
    return min(limits, default=None)


def _row(path: str, parameter: Parameter) -> ParameterRow:
    members = list(parameter.drawn_from(parameter.kind) or ())
    values = [f"{members[0]:g} to {members[1]:g}"] if parameter.kind in ("float", "int") else list(map(_shown, members))
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
    return "is " + " or ".join(map(_shown, wanted if isinstance(wanted, list) else [wanted]))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _warnings(study: Study, space: Space) -> Iterator[str]:
    base, search = study.base, study.search
    num_train = _num_train(base)
    if num_train is not None and base.training.batch_size > num_train:
        yield (
            f"trial.training.batch_size: {base.training.batch_size} is more than the {num_train} training images, "
            "so that every epoch is one smaller step"
        )
    teacher, student = base.teacher, base.student
    if base.needs_teacher and teacher and _BY_SIZE.index(teacher.backbone) < _BY_SIZE.index(student.backbone):
        yield f"trial.teacher.backbone: {teacher.backbone} is smaller than the student's {student.backbone}"
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
        yield f"search.trials: {search.trials} is more than the {cells} points of the space; the search ends when they are done"


def _stop_early_warnings(study: Study) -> Iterator[str]:
    assert study.search is not None
    epochs = study.search.parameters.get("training.epochs")
    most = max([study.base.training.epochs] if epochs is None else epochs.drawn_from(epochs.kind) or ())
    for name in ("asha", "median"):
        rule = getattr(study.search.stop_early, name)
        if rule is not None and rule.grace_epochs >= most:
            yield (
                f"search.stop_early.{name}.grace_epochs: {rule.grace_epochs} is not below the {most} epochs of a trial, "
                "so that none is stopped early"
            )


def _num_train(config: TrialConfig) -> int | None:
    """Images that are left for training; None where the settings do not tell."""
    data = config.data
    if data.dataset != "shapes":
        return None
    return data.num_train - round(data.search_split if data.search_split >= 1 else data.search_split * data.num_train)
