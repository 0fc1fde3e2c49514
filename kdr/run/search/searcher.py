"""A study's search as a searcher of Ray Tune: which trial runs next, and when the search ends.

How Tune 2.60 calls a searcher:
- `suggest` returns a config, `None` (ask again later) or `FINISHED` (never ask again).
- The last result of a trial comes through `on_trial_complete` alone, whether the trial reached its
  end or was stopped. The retry of a crashed trial is not announced at all.
- Tune pickles its configuration, and the searcher in it, once when a sweep starts. kdr never reads
  that back.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ray.tune.search import Searcher

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.errors import ConfigError
from kdr.plan.given_point import OutsideSpaceError, enqueued_points, point_of
from kdr.plan.known import End, KnownTrial
from kdr.plan.points import Point, grid
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.budget import SearchBudget
from kdr.run.search.history import History
from kdr.run.search.sampler import Proposal, StoredSampler
from kdr.run.trial_report import TrialReport

MAX_KNOWN_IN_A_ROW = 50
"""Proposals in a row that need not run, after which the space counts as exhausted. TPE repeats
itself in small spaces: of 60 draws from 16 cells, 44 were repeats (Optuna 5)."""


class Launcher(Protocol):
    """The driver's side of a search."""

    @property
    def is_ending(self) -> bool:
        """Whether the study is being terminated, so that no trial may start."""
        ...

    def may_run(self, key: str) -> bool:
        """Claims a trial for this driver; False while another driver trains it."""
        ...

    def note(self, trial: Trial, point: Point) -> None:
        """Notes that the study uses a trial that it does not start now: another study completed it,
        or another driver trains it.
        """

    def launch(self, trial: Trial, point: Point, *, trials_known: int) -> LaunchedTrial:
        """Notes a trial that starts now, and returns it in Tune's form."""
        ...


@dataclass
class _Running:
    trial: Trial
    proposal: Proposal
    twins: list[Proposal] = field(default_factory=list)
    """Later proposals of the same trial; they get the same result."""


class StudySearcher(Searcher):
    """Hands the trials of a search to Ray Tune, each key at most once.

    Interrupted trials come first, then enqueued points, then the cells of a grid or the sampler's
    proposals. A proposal whose trial is known gets the known result and costs nothing. A proposal
    whose trial is running waits for its result.

    Args:
        study: a study with a search, whose space was checked.
        journal: file of the Optuna journal.
        history: the study's past. Its known trials do not run again; its interrupted ones do, and
            are already charged.
        budget: the budget of the search.
        launcher: claims and notes trials, and puts them into Tune's form.
        make_trial: gives a trial its identity.
    """

    def __init__(
        self,
        study: Study,
        *,
        journal: Path,
        history: History,
        budget: SearchBudget,
        launcher: Launcher,
        make_trial: Callable[[TrialConfig], Trial],
    ) -> None:
        # without a metric: Tune would refuse results that lack it, and the sampler gets its values
        # from reports
        super().__init__()
        assert study.search is not None
        self._study, self._search = study, study.search
        self._launcher, self._make_trial = launcher, make_trial
        self._known = dict(history.known)
        self._sampler = StoredSampler(study, journal, self._known)
        self._interrupted = deque(point for point in history.interrupted if self._in_space(point))
        # an iterator, which keeps its place between calls of `suggest`
        self._listed = self._listed_points()
        self._running: dict[str, _Running] = {}
        """Tune's id -> the trial."""
        self.budget = budget
        self.num_answered = 0
        """Proposals of the sampler that needed no run: their trial was already known or running."""
        self.refused: list[ConfigError] = []
        """Why proposals were not valid trials; the sampler counts them as failed."""
        self.claimed_by_others: set[str] = set()
        """Keys of due trials that another driver trains. Their proposals stay open, as after a
        kill: the next session takes them up."""

    def suggest(self, trial_id: str) -> dict[str, object] | str:  # type: ignore[override]
        """Returns Tune's config of the next trial, or `FINISHED` if budget or space is used up."""
        if self._launcher.is_ending or not self.budget.has_time_left:
            self.claimed_by_others.clear()  # no session of this run will need them
            return self.FINISHED
        running = self._next_claimed()
        if running is None:
            return self.FINISHED
        self._running[trial_id] = running
        self.budget.trial_started(trial_id)
        # so that the journal has this proposal's trial even after a kill
        self._sampler.name(running.proposal, running.trial.key)
        point = dict(running.proposal.point)
        launched = self._launcher.launch(
            running.trial, point, trials_known=self._sampler.num_complete
        )
        return launched.as_config()

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        """Passes the value of an epoch to the sampler."""
        running, report = self._running.get(trial_id), TrialReport.of_result(result)
        if running is not None and report is not None:
            self._report(running, report)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False
    ) -> None:
        """Passes the end of a trial to the sampler, with the epochs of a stopped trial."""
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        self.budget.trial_ended(trial_id)
        # after an error Tune passes no result
        report = None if error else TrialReport.of_result(result)
        if report is not None:
            self._report(running, report)
        known = self._ended(running, report)
        for proposal in (running.proposal, *running.twins):
            self._sampler.tell(proposal, known)
        self._known[known.key] = known

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the journal is on disk, and the log is a study's memory."""

    def __getstate__(self) -> dict[str, object]:
        """Returns the study's name alone: a searcher restored from Tune's files would be a second
        memory beside the log, and Optuna's locks cannot be pickled.
        """
        return {"study": self._study.study}

    def _in_space(self, point: Point) -> bool:
        try:
            return bool(point_of(self._sampler.space, point))
        except OutsideSpaceError:
            return False  # the space has changed since

    def _listed_points(self) -> Iterator[Point]:
        yield from enqueued_points(self._study, self._sampler.space)
        if self._search.sampler.grid is not None:
            yield from grid(self._sampler.space)

    def _next_claimed(self) -> _Running | None:
        """Returns the next trial that this driver may run. Trials that others train are noted, so
        that the next session starts with them.
        """
        while (running := self._next()) is not None:
            if self._launcher.may_run(running.trial.key):
                return running
            self.claimed_by_others.add(running.trial.key)
            self._launcher.note(running.trial, running.proposal.point)
        return None

    def _next(self) -> _Running | None:
        if (interrupted := self._next_interrupted()) is not None:
            return interrupted  # already charged: it resumes even if the budget is used up
        if not self.budget.has_trials_left:
            return None
        running = self._next_listed()
        if running is None and self._search.sampler.grid is None:
            running = self._next_proposed()
        if running is not None:
            self.budget.charge_trial()
        return running

    def _next_interrupted(self) -> _Running | None:
        while self._interrupted:
            point = self._interrupted.popleft()
            trial = self._trial_at(point)
            if trial is not None and not self._is_taken(trial.key):
                return _Running(trial, self._sampler.propose_given(point))
        return None

    def _next_listed(self) -> _Running | None:
        for point in self._listed:
            trial = self._trial_at(point)
            if trial is None or self._is_taken(trial.key):
                continue
            if trial.key not in self._known:
                return _Running(trial, self._sampler.propose_given(point))
            # the sampler already has this study's own results, but not another study's
            if self._is_another_studys(trial.key):
                self._answer(trial, self._sampler.propose_given(point))
        return None

    def _next_proposed(self) -> _Running | None:
        for _ in range(MAX_KNOWN_IN_A_ROW):
            proposal = self._sampler.propose()
            trial = self._trial_at(proposal.point)
            if trial is None:
                # counts as failed, so that the sampler avoids this region
                self._sampler.tell(proposal, KnownTrial(key="", end="failed"))
            elif trial.key in self._known:
                self._answer(trial, proposal)
                self.num_answered += 1
            elif (running := self._running_with(trial.key)) is not None:
                running.twins.append(proposal)
                self.num_answered += 1
            elif trial.key not in self.claimed_by_others:
                return _Running(trial, proposal)
        return None

    def _answer(self, trial: Trial, proposal: Proposal) -> None:
        """Passes the known end of a trial to the sampler. If another study ran the trial, this
        study notes that it uses it, once.
        """
        self._sampler.name(proposal, trial.key)
        self._sampler.tell(proposal, self._known[trial.key])
        if self._is_another_studys(trial.key):
            point = dict(proposal.point)
            self._known[trial.key] = replace(self._known[trial.key], parameters=point)
            self._launcher.note(trial, proposal.point)

    def _is_another_studys(self, key: str) -> bool:
        """Returns whether another study ran a known trial that this one has not used yet."""
        return self._known[key].parameters is None

    def _is_taken(self, key: str) -> bool:
        """Returns whether a trial is running, here or under another driver."""
        return key in self.claimed_by_others or self._running_with(key) is not None

    def _trial_at(self, point: Point) -> Trial | None:
        try:
            return self._make_trial(self._study.trial_with(point))
        except ConfigError as error:
            self.refused.append(error)
            return None

    def _running_with(self, key: str) -> _Running | None:
        return next((one for one in self._running.values() if one.trial.key == key), None)

    def _report(self, running: _Running, report: TrialReport) -> None:
        value = report.value(self._search.metric)
        if value is not None:
            self._sampler.report(running.proposal, report.epoch, value)

    def _ended(self, running: _Running, report: TrialReport | None) -> KnownTrial:
        value = report.value(self._search.metric) if report else None
        end: End = "stopped_early"
        # a metric that is NaN counts as a failure: Optuna accepts no NaN as a value
        if report is None or value is None:
            end = "failed"
        elif report.epoch >= running.trial.config.training.epochs:
            end = "completed"
        return KnownTrial(
            key=running.trial.key,
            end=end,
            value=value if end == "completed" else None,
            intermediate=dict(running.proposal.intermediate),
            parameters=dict(running.proposal.point),
        )
