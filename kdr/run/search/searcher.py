"""The search of a study, as Ray Tune asks for it: what runs next, what need not run, and when it is
enough.

What matters of Ray 2.60: Tune tells the last result of a trial only through `on_trial_complete`,
whether the trial reached its end or was stopped; a retry of a crashed trial is not told at all;
after `FINISHED` it never asks again, after `None` it does. Tune's configuration, the searcher in
it, is pickled once when a sweep starts, and never read again by us.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from ray.tune.search import Searcher

from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.errors import ConfigError
from kdr.plan.given_point import OutsideSpaceError, enqueued_points, point_of
from kdr.plan.known import End, KnownTrial
from kdr.plan.points import Point, grid
from kdr.run.observer import ignore
from kdr.run.search.sampler import Proposal, StoredSampler

MAX_KNOWN_IN_A_ROW = 50
"""Proposals in a row that need not run, after which the space counts as exhausted."""


class ConfigOf(Protocol):
    """Gives Tune's config of a trial that is about to start."""

    def __call__(self, trial: Trial, *, parameters: Point, trials_known: int) -> dict[str, Any]:
        """Called once per trial; `trials_known` says how many completed trials the sampler knew."""


@dataclass
class _Running:
    trial: Trial
    proposal: Proposal
    begin: float = 0.0
    """When it was handed over, by the searcher's clock."""
    twins: list[Proposal] = field(default_factory=list)
    """Later proposals of the same trial, which get the same result."""


class StudySearcher(Searcher):
    """Hands the trials of a search to Ray Tune, each key at most once.

    First the interrupted trials, then the enqueued points, then the grid's cells or the sampler's
    proposals. A proposal whose key is known is answered with its known end and costs nothing; a key
    that is running is not started again.

    Args:
        study: a study with a search, whose space has been checked.
        journal: file of the Optuna journal.
        config_of: gives Tune's config of a trial that starts.
        make_trial: gives a trial its identity.
        known: ended trials by key; completed, stopped early or failed, they do not run again.
        interrupted: points of trials that were cut off; they run first, and are charged already.
        num_used: trials charged to the budget by earlier sessions, the interrupted ones included.
        hours_used: hours of earlier sessions.
        num_gpus: GPUs that each trial holds.
        gpu_hours_used: GPU-hours of earlier sessions.
        is_ending: says whether the study is being terminated, so that nothing new is to start.
        on_known: is told once of each trial that this study asks for and another study has run, or
            is at.
        may_run: says whether a trial may start; not where another study is at it.
        clock: seconds that go by.
    """

    def __init__(
        self,
        study: Study,
        *,
        journal: Path,
        config_of: ConfigOf,
        make_trial: Callable[[TrialConfig], Trial],
        known: Mapping[str, KnownTrial] | None = None,
        interrupted: Sequence[Point] = (),
        num_used: int = 0,
        hours_used: float = 0.0,
        num_gpus: float = 0.0,
        gpu_hours_used: float = 0.0,
        on_known: Callable[[Trial, Point], None] = ignore,
        may_run: Callable[[str], bool] = lambda _key: True,
        is_ending: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # without a metric: Tune would refuse results that lack it, and a failed trial's does
        super().__init__()
        assert study.search is not None
        self._study, self._search = study, study.search
        self._config_of = config_of
        self._make_trial = make_trial
        self._on_known = on_known
        self._clock = clock
        self._known = dict(known or {})
        self._sampler = StoredSampler(study, journal, self._known)
        self._interrupted = deque(point for point in interrupted if self._in_space(point))
        self._listed = self._listed_points()
        self._running: dict[str, _Running] = {}
        self._is_ending, self._may_run = is_ending, may_run
        self._begin, self._hours_used = clock(), hours_used
        self._num_gpus, self._gpu_hours_used = num_gpus, gpu_hours_used
        self.num_used = num_used
        """Trials charged to the budget so far."""
        self.num_answered = 0
        """Proposals of the sampler that needed no run, since their trial was known or running."""
        self.refused: list[ConfigError] = []
        """Proposals that turned out not to be a trial; the sampler was told that they failed."""
        self.elsewhere: set[str] = set()
        """Keys of trials that were asked for and may not run. Their proposals are left open, as by
        a process that was killed."""

    def suggest(self, trial_id: str) -> Any:
        """Tune's config of the next trial, or `FINISHED` when budget or space are used up."""
        if self._is_ending() or self._hours_are_up() or self._gpu_hours_are_up():
            self.elsewhere.clear()
            return self.FINISHED
        while (running := self._next()) is not None and not self._may_run(running.trial.key):
            self.elsewhere.add(running.trial.key)
            # whoever searches on begins with it
            self._on_known(running.trial, running.proposal.point)
        if running is None:
            return self.FINISHED
        running.begin = self._clock()
        self._running[trial_id] = running
        self._sampler.name(running.proposal, running.trial.key)
        return self._config_of(
            running.trial,
            parameters=dict(running.proposal.point),
            trials_known=self._sampler.num_complete,
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Tells the sampler the value of an epoch."""
        running = self._running.get(trial_id)
        if running is not None:
            self._report(running, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tells the sampler how a trial ended; a trial that was stopped ends as stopped early, with
        what it had reached.
        """
        running = self._running.pop(trial_id, None)
        if running is None:
            return
        self._gpu_hours_used += self._gpu_hours_of(running)
        if result and not error:
            self._report(running, result)
        known = self._ended(running, result or {}, error=error)
        for proposal in (running.proposal, *running.twins):
            self._sampler.tell(proposal, known)
        self._known[known.key] = known

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is on disk, and the log is the memory of a study."""

    def __getstate__(self) -> dict[str, Any]:
        """The study's name alone: a searcher read back from Tune's files would be a second memory
        beside the log.
        """
        return {"study": self._study.study}

    def _in_space(self, point: Point) -> bool:
        try:
            return bool(point_of(self._sampler.space, point))
        except OutsideSpaceError:
            return False  # the space was changed since

    def _listed_points(self) -> Iterator[Point]:
        yield from enqueued_points(self._study, self._sampler.space)
        if self._search.sampler.grid is not None:
            yield from grid(self._sampler.space)

    def _hours_are_up(self) -> bool:
        hours = self._hours_used + (self._clock() - self._begin) / 3600
        return self._search.hours is not None and hours >= self._search.hours

    def _gpu_hours_are_up(self) -> bool:
        hours = self._gpu_hours_used + sum(map(self._gpu_hours_of, self._running.values()))
        return self._search.gpu_hours is not None and hours >= self._search.gpu_hours

    def _gpu_hours_of(self, running: _Running) -> float:
        return self._num_gpus * (self._clock() - running.begin) / 3600

    def _trials_are_up(self) -> bool:
        return self._search.trials is not None and self.num_used >= self._search.trials

    def _next(self) -> _Running | None:
        return self._next_interrupted() or (None if self._trials_are_up() else self._next_new())

    def _next_interrupted(self) -> _Running | None:
        while self._interrupted:
            point = self._interrupted.popleft()
            trial = self._trial_at(point)
            if (
                trial is not None
                and trial.key not in self.elsewhere
                and self._runner_of(trial) is None
            ):
                return _Running(trial, self._sampler.propose_given(point))
        return None

    def _next_new(self) -> _Running | None:
        running = self._next_listed() or (
            None if self._search.sampler.grid is not None else self._next_proposed()
        )
        if running is not None:
            self.num_used += 1
        return running

    def _next_listed(self) -> _Running | None:
        for point in self._listed:
            trial = self._trial_at(point)
            if trial is None or trial.key in self.elsewhere or self._runner_of(trial) is not None:
                continue
            if trial.key not in self._known:
                return _Running(trial, self._sampler.propose_given(point))
            if self._is_elsewhere(trial.key):
                self._answer(trial, self._sampler.propose_given(point))
        return None

    def _next_proposed(self) -> _Running | None:
        for _ in range(MAX_KNOWN_IN_A_ROW):
            proposal = self._sampler.propose()
            trial = self._trial_at(proposal.point)
            if trial is None:
                self._sampler.tell(proposal, KnownTrial(key="", end="failed"))
            elif trial.key in self._known:
                self._answer(trial, proposal)
                self.num_answered += 1
            elif (twin := self._runner_of(trial)) is not None:
                twin.twins.append(proposal)
                self.num_answered += 1
            elif trial.key not in self.elsewhere:
                return _Running(trial, proposal)
        return None

    def _answer(self, trial: Trial, proposal: Proposal) -> None:
        """Tells the sampler the known end of a trial; of another study's, also the owner."""
        self._sampler.name(proposal, trial.key)
        self._sampler.tell(proposal, self._known[trial.key])
        if self._is_elsewhere(trial.key):
            self._known[trial.key] = replace(
                self._known[trial.key], parameters=dict(proposal.point)
            )
            self._on_known(trial, proposal.point)

    def _is_elsewhere(self, key: str) -> bool:
        """Whether another study ran a known trial, and this one has not asked for it yet."""
        return self._known[key].parameters is None

    def _trial_at(self, point: Point) -> Trial | None:
        try:
            return self._make_trial(self._study.trial_with(point))
        except ConfigError as error:
            self.refused.append(error)
            return None

    def _runner_of(self, trial: Trial) -> _Running | None:
        return next(
            (running for running in self._running.values() if running.trial.key == trial.key), None
        )

    def _report(self, running: _Running, result: Mapping[str, Any]) -> None:
        value, epoch = _finite(result.get(self._search.metric)), result.get("epoch")
        if value is not None and epoch is not None:
            self._sampler.report(running.proposal, epoch, value)

    def _ended(self, running: _Running, result: Mapping[str, Any], *, error: bool) -> KnownTrial:
        value = _finite(result.get(self._search.metric))
        end: End = "stopped_early"
        if error or value is None:
            end = "failed"
        elif result.get("epoch", 0) >= running.trial.config.training.epochs:
            end = "completed"
        return KnownTrial(
            key=running.trial.key,
            end=end,
            value=value if end == "completed" else None,
            intermediate=dict(running.proposal.intermediate),
            parameters=dict(running.proposal.point),
        )


def _finite(value: Any) -> float | None:
    """The value as a number; None if there is none, or if it is infinite or NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
