"""Proposes points of a search space with Optuna, and keeps what it was told in a journal file.

The journal is what `optuna-dashboard` shows, and saves drawing again; the trial log stays the
memory of a study. A journal that is torn, or was written for another space, is therefore begun anew
from what the log knows.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from kdr.config.canonical import canonical_json
from kdr.config.search import Parameter, Search
from kdr.config.study import Study
from kdr.plan.given_point import OutsideSpaceError, point_of
from kdr.plan.keys import key_of
from kdr.plan.known import End, KnownTrial
from kdr.plan.points import Point, Space, Suggest, draw, space_of
from kdr.randomness import address

_STATES: dict[End, TrialState] = {
    "completed": TrialState.COMPLETE,
    "stopped_early": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


_CUT_OFF = "cut off"
"""Numbers of proposals that a killed process left behind; they are no draws, since they are drawn
again."""


@dataclass
class Proposal:
    """A point that the sampler waits to hear about."""

    point: Point
    """Value by path."""
    asked: optuna.Trial
    """Optuna's side of it."""
    intermediate: dict[int, float] = field(default_factory=dict)
    """Epoch -> value, as far as it has been told."""


class StoredSampler:
    """Draws points of a study's search space and learns from their results.

    A journal whose results are not those of the log any more, since trials were excluded, is begun
    anew, too.

    Args:
        study: the study; its sampler decides how points are drawn.
        journal: file of the Optuna journal; an earlier one is continued.
        known: trials that have ended before; those that the journal lacks are added to it.
    """

    def __init__(self, study: Study, journal: Path, known: Mapping[str, KnownTrial]) -> None:
        assert study.search is not None
        self.space = space_of(study)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna = _open_study(study, journal, known)
        self._search = study.search
        self._fail_unfinished()
        self._add(known)
        self._num_draws = len(self._counted())
        self.num_complete = len(
            self._optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        )
        """Trials whose results at the last epoch the sampler knows."""

    def propose(self) -> Proposal:
        """A point of the sampler's choice.

        The draw is one of (seed, how many there were before), so that a study that was cut off goes
        on with the points that it would have drawn.
        """
        self._optuna.sampler = _sampler(self._search, self._num_draws)
        self._num_draws += 1
        asked = self._optuna.ask()
        return Proposal(draw(self.space, _asking(asked)), asked)

    def propose_given(self, point: Point) -> Proposal:
        """A point of the caller's choice, which the sampler learns from like from its own."""
        params, _ = _encoded(self.space, point)
        self._optuna.enqueue_trial(params)
        return self.propose()

    def name(self, proposal: Proposal, key: str) -> None:
        """Notes which trial tries a proposal."""
        proposal.asked.set_user_attr("key", key)

    def report(self, proposal: Proposal, epoch: int, value: float) -> None:
        """Tells the value at an epoch; an epoch that a retried trial reports again is not counted
        twice.
        """
        if epoch not in proposal.intermediate:
            proposal.intermediate[epoch] = value
            proposal.asked.report(value, epoch)

    def tell(self, proposal: Proposal, known: KnownTrial) -> None:
        """Tells how the trial of a proposal ended; each line of the journal is a write to the disk,
        hence no epochs too many.
        """
        for epoch, value in (
            sorted(known.intermediate.items()) if known.end == "stopped_early" else ()
        ):
            self.report(proposal, epoch, value)
        self._optuna.tell(
            proposal.asked,
            known.value if known.end == "completed" else None,
            state=_STATES[known.end],
        )
        self.num_complete += _STATES[known.end] == TrialState.COMPLETE

    def _fail_unfinished(self) -> None:
        """Ends what an earlier process left running or waiting; a trial that goes on is proposed
        again.
        """
        for _ in self._optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._optuna.ask()
        running = [
            trial.number
            for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]
        if running:
            self._optuna.set_user_attr(
                _CUT_OFF, [*self._optuna.user_attrs.get(_CUT_OFF, ()), *running]
            )
        for number in running:
            self._optuna.tell(number, state=TrialState.FAIL)

    def _counted(self) -> list[FrozenTrial]:
        """The trials of the journal, without proposals that were cut off."""
        cut_off = set(self._optuna.user_attrs.get(_CUT_OFF, ()))
        return [
            trial
            for trial in self._optuna.get_trials(deepcopy=False)
            if trial.number not in cut_off
        ]

    def _add(self, known: Mapping[str, KnownTrial]) -> None:
        told = {(trial.user_attrs.get("key"), trial.state) for trial in self._counted()}
        for trial in known.values():
            if (trial.key, _STATES[trial.end]) not in told and (
                frozen := _frozen(self.space, trial)
            ):
                self._optuna.add_trial(frozen)


def _open_study(study: Study, journal: Path, known: Mapping[str, KnownTrial]) -> optuna.Study:
    assert study.search is not None
    space_id = key_of(
        {
            path: parameter.model_dump(mode="json")
            for path, parameter in study.search.parameters.items()
        }
    )
    journal.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn_lines(journal)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    opened = optuna.create_study(
        study_name=study.study, storage=storage, direction="maximize", load_if_exists=True
    )
    ended = opened.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    agrees = all(_agrees(trial, known.get(trial.user_attrs.get("key", ""))) for trial in ended)
    if not agrees or opened.user_attrs.get("space", space_id) != space_id:
        optuna.delete_study(study_name=study.study, storage=storage)
        opened = optuna.create_study(study_name=study.study, storage=storage, direction="maximize")
    opened.set_user_attr("space", space_id)
    with _experimental():
        opened.set_metric_names([study.search.metric])
    return opened


def _agrees(told: FrozenTrial, known: KnownTrial | None) -> bool:
    """Whether what the sampler was told of an ended trial is what the log knows of it."""
    both_complete = (
        told.state == TrialState.COMPLETE and known is not None and known.end == "completed"
    )
    return known is not None and (not both_complete or told.value == known.value)


def _drop_torn_lines(journal: Path) -> None:
    """Cuts the journal where a killed process left half a line; Optuna would append to it, and then
    refuse the file.
    """
    if not journal.exists():
        return
    length = 0
    with journal.open("rb+") as file:
        for line in file:
            if not _is_entry(line):
                break
            length += len(line)
        file.truncate(length)


def _is_entry(line: bytes) -> bool:
    try:
        return line.endswith(b"\n") and isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _sampler(search: Search, number: int) -> BaseSampler:
    """The sampler of one draw."""
    seeded = search.sampler.tpe or search.sampler.random
    seed = address(seeded.seed if seeded else 0, "draw", number) % 2**32
    if search.sampler.tpe is not None:
        with _experimental():
            return TPESampler(seed=seed, multivariate=True, group=True)
    return RandomSampler(seed=seed)


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Lets a part of Optuna be used that it calls experimental: `group`, and names of metrics for
    the dashboard.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _asking(asked: optuna.Trial) -> Suggest:
    def suggest(path: str, parameter: Parameter) -> Any:
        if parameter.float_ is not None:
            return asked.suggest_float(path, *parameter.float_, log=parameter.log)
        if parameter.int_ is not None:
            return asked.suggest_int(path, *parameter.int_, log=parameter.log)
        if parameter.choice is not None:
            label = asked.suggest_categorical(path, [_label(member) for member in parameter.choice])
            return next(member for member in parameter.choice if _label(member) == label)
        members = parameter.subset or ()
        return [
            member
            for member in members
            if asked.suggest_categorical(_member_name(path, member), [False, True])
        ]

    return suggest


def _distributions(path: str, parameter: Parameter) -> dict[str, BaseDistribution]:
    """Optuna's parameters for one of ours: one each, but one for each member of a subset."""
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


def _encoded(
    space: Space, values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Optuna's parameters and distributions of a point.

    Raises:
        OutsideSpaceError: if it lies outside the space.
    """
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    for path, value in point_of(space, values).items():
        parameter = space.parameters[path]
        distributions |= _distributions(path, parameter)
        if parameter.subset is not None:
            params |= {_member_name(path, member): member in value for member in parameter.subset}
        else:
            params[path] = _label(value) if parameter.choice is not None else value
    return params, distributions


def _frozen(space: Space, known: KnownTrial) -> FrozenTrial | None:
    """An ended trial as Optuna stores it; None if this space could not have drawn it."""
    if known.parameters is None:
        return None
    try:
        params, distributions = _encoded(space, known.parameters)
    except OutsideSpaceError:
        return None
    return create_trial(
        state=_STATES[known.end],
        value=_value(known),
        params=params,
        distributions=distributions,
        intermediate_values=dict(known.intermediate),
        user_attrs={"key": known.key},
    )


def _value(known: KnownTrial) -> float | None:
    """The value under which Optuna ranks a trial; of a pruned one, as by its `tell`, the last that
    was reached.
    """
    if known.end == "stopped_early" and known.intermediate:
        return known.intermediate[max(known.intermediate)]
    return known.value if known.end == "completed" else None


def _label(member: Any) -> str:
    """A member of a choice as a word: Optuna stores no lists, and takes 1 and true for one
    value.
    """
    return canonical_json(member)


def _member_name(path: str, member: Any) -> str:
    return f"{path}[{member}]"
