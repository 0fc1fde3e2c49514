"""The budget of a search: the study's limits, and what its sessions have used so far."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from kdr.config.search import Search


@dataclass(frozen=True)
class Used:
    """The part of a budget that earlier sessions used."""

    trials: int = 0
    """Trials charged to the budget, including interrupted trials that will resume. A trial that
    another study ran costs nothing."""
    hours: float = 0.0
    """Wall-clock hours in which sessions trained."""
    gpu_hours: float = 0.0
    """GPUs that trials held, times the hours for which they held them."""


class SearchBudget:
    """Counts the use of a search's budget.

    Args:
        search: the study's search, with its limits.
        used: the part that earlier sessions used.
        gpus_per_trial: GPUs that each trial holds.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        search: Search,
        used: Used | None = None,
        *,
        gpus_per_trial: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        used = used or Used()
        self.num_trials = used.trials
        """Trials charged so far, over all sessions."""
        self._search, self._gpus_per_trial, self._clock = search, gpus_per_trial, clock
        # wall-clock time runs from here, that of GPUs from the start of each trial
        self._begin, self._hours_before, self._gpu_hours = clock(), used.hours, used.gpu_hours
        self._started: dict[str, float] = {}
        """Tune's id of each running trial -> when it started."""

    @property
    def has_trials_left(self) -> bool:
        """Whether a new trial may be charged."""
        return self._search.trials is None or self.num_trials < self._search.trials

    @property
    def has_time_left(self) -> bool:
        """Whether a trial may still start, by `hours` and `gpu_hours`. Running trials count with
        their GPU-hours so far; none is stopped when the time is up.
        """
        hours = self._hours_before + self._hours_since(self._begin)
        gpu_hours = self._gpu_hours + sum(map(self._gpu_hours_since, self._started.values()))
        allowed, allowed_gpu = self._search.hours, self._search.gpu_hours
        return (allowed is None or hours < allowed) and (
            allowed_gpu is None or gpu_hours < allowed_gpu
        )

    def charge_trial(self) -> None:
        """Counts one more trial."""
        self.num_trials += 1

    def trial_started(self, trial_id: str) -> None:
        """Starts the clock of a trial's GPUs."""
        self._started[trial_id] = self._clock()

    def trial_ended(self, trial_id: str) -> None:
        """Stops the clock of a trial's GPUs."""
        self._gpu_hours += self._gpu_hours_since(self._started.pop(trial_id))

    def _gpu_hours_since(self, start: float) -> float:
        return self._gpus_per_trial * self._hours_since(start)

    def _hours_since(self, start: float) -> float:
        return (self._clock() - start) / 3600
