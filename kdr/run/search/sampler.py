"""Proposes points of a search space with Optuna, and keeps its results in Optuna's journal.

`optuna-dashboard` reads the journal, and with it no draw is repeated after a restart. The trial log
remains the memory of a study: a journal that is torn, was written for another space, or disagrees
with the log is rebuilt from the log.
"""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from kdr.config.search import Search
from kdr.config.study import Study
from kdr.plan.keys import key_of
from kdr.plan.known import KnownTrial
from kdr.plan.points import Point, draw, space_of
from kdr.randomness import address
from kdr.run.search.optuna_points import STATES, ended_trial, optuna_params, suggest_from

_CUT_OFF = "cut off"
"""Attribute of the Optuna study: numbers of the proposals that a killed process left open. They do
not count as draws, because the next session draws them again."""


@dataclass
class Proposal:
    """A point for whose result the sampler waits."""

    point: Point
    """Value by path."""
    asked: optuna.Trial
    """Optuna's trial of the point."""
    intermediate: dict[int, float] = field(default_factory=dict)
    """Epoch -> value, as reported so far."""


class StoredSampler:
    """Draws points of a study's search space and learns from their results.

    Args:
        study: the study; its sampler decides how points are drawn.
        journal: file of the Optuna journal; an existing one is continued.
        known: trials that ended before; those missing from the journal are added to it.
    """

    def __init__(self, study: Study, journal: Path, known: Mapping[str, KnownTrial]) -> None:
        assert study.search is not None
        self.space = space_of(study)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # otherwise it prints a line per trial
        self._optuna = _open_study(study, journal, known)
        self._search = study.search
        # in this order: what a killed process left must not count as a draw
        self._fail_unfinished()
        self._add_missing(known)
        self._num_draws = len(self._counted_trials())
        self.num_complete = len(
            self._optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        )
        """Trials whose results at the last epoch the sampler knows."""

    def propose(self) -> Proposal:
        """Returns a point of the sampler's choice.

        Each draw gets a sampler of its own, seeded by the number of earlier draws, so that a killed
        study continues with the points that it would have drawn.
        """
        self._optuna.sampler = _sampler(self._search, self._num_draws)
        self._num_draws += 1
        asked = self._optuna.ask()
        return Proposal(draw(self.space, suggest_from(asked)), asked)

    def propose_given(self, point: Point) -> Proposal:
        """Returns a proposal for the caller's point; the sampler learns from it as from its own."""
        self._optuna.enqueue_trial(optuna_params(self.space, point))
        return self.propose()

    def name(self, proposal: Proposal, key: str) -> None:
        """Notes the key of a proposal's trial."""
        proposal.asked.set_user_attr("key", key)

    def report(self, proposal: Proposal, epoch: int, value: float) -> None:
        """Passes on the value of an epoch; a repeat of an epoch by a retried trial is ignored."""
        if epoch not in proposal.intermediate:
            proposal.intermediate[epoch] = value
            proposal.asked.report(value, epoch)

    def tell(self, proposal: Proposal, known: KnownTrial) -> None:
        """Passes on how the trial of a proposal ended.

        The epochs of a trial that was stopped early are part of its result. For other trials they
        are left out, because each epoch is a line of the journal, and each line costs an fsync.
        """
        if known.end == "stopped_early":
            for epoch, value in sorted(known.intermediate.items()):
                self.report(proposal, epoch, value)
        state = STATES[known.end]
        value_at_end = known.value if known.end == "completed" else None
        self._optuna.tell(proposal.asked, value_at_end, state=state)
        self.num_complete += state == TrialState.COMPLETE

    def _fail_unfinished(self) -> None:
        """Fails the trials that an earlier process left waiting or running: Optuna never ends them.
        A trial that resumes is proposed again.
        """
        for _ in self._optuna.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._optuna.ask()  # takes a waiting trial, which is then running
        running = [
            trial.number
            for trial in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]
        if running:
            before = self._optuna.user_attrs.get(_CUT_OFF, ())
            self._optuna.set_user_attr(_CUT_OFF, [*before, *running])
        for number in running:
            self._optuna.tell(number, state=TrialState.FAIL)

    def _counted_trials(self) -> list[FrozenTrial]:
        """Returns the trials of the journal, without those that a killed process left open."""
        cut_off = set(self._optuna.user_attrs.get(_CUT_OFF, ()))
        # without copies: Optuna would copy every trial of the study
        return [
            trial
            for trial in self._optuna.get_trials(deepcopy=False)
            if trial.number not in cut_off
        ]

    def _add_missing(self, known: Mapping[str, KnownTrial]) -> None:
        present = {(trial.user_attrs.get("key"), trial.state) for trial in self._counted_trials()}
        for trial in known.values():
            if (trial.key, STATES[trial.end]) in present:
                continue
            if (ended := ended_trial(self.space, trial)) is not None:
                self._optuna.add_trial(ended)


def _open_study(study: Study, journal: Path, known: Mapping[str, KnownTrial]) -> optuna.Study:
    """Opens the Optuna study in a journal; starts over if it belongs to another space, or has
    results that the log does not have, such as those of a trial that has since been excluded.
    """
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


def _agrees(stored: FrozenTrial, known: KnownTrial | None) -> bool:
    """Returns whether the journal and the log agree about an ended trial."""
    if known is None:
        return False
    both_complete = stored.state == TrialState.COMPLETE and known.end == "completed"
    return not both_complete or stored.value == known.value


def _drop_torn_lines(journal: Path) -> None:
    """Truncates a journal before the first torn line, which a killed process left.

    Optuna 5.0 appends to a torn line, and from then on refuses the file (optuna #5138). Can go when
    its `JournalFileBackend` drops torn lines itself.
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
    """Returns the sampler of one draw."""
    seeded = search.sampler.tpe or search.sampler.random
    seed = address(seeded.seed if seeded else 0, "draw", number) % 2**32
    if search.sampler.tpe is not None:
        # without `group`, TPE draws each parameter that is not in every trial by itself
        with _experimental():
            return TPESampler(seed=seed, multivariate=True, group=True)
    # also for a grid: its cells are given points, so nothing is drawn
    return RandomSampler(seed=seed)


@contextlib.contextmanager
def _experimental() -> Iterator[None]:
    """Silences Optuna's warnings about the experimental parts that kdr uses: `group` of TPE, and
    metric names for the dashboard.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
