"""Protocols for the parts of Ray Tune's trials, controller and loggers that kdr uses.

Tune's own classes are only partly typed. These protocols list the attributes that kdr relies on:
compare them with `ray.tune.experiment.Trial` when Ray is upgraded (written for Ray 2.60).
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class TuneTrial(Protocol):
    """A trial of Tune, as callbacks and schedulers see it."""

    @property
    def trial_id(self) -> str:
        """Tune's own id; a trial that is retried keeps it."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """The config from the searcher or the grid (`kdr.run.launched_trial`)."""
        ...

    @property
    def last_result(self) -> Mapping[str, object] | None:
        """The last result (`kdr.run.trial_report`); columns of Tune's own before the first
        report.
        """
        ...

    @property
    def status(self) -> str:
        """`PENDING`, `RUNNING`, `PAUSED`, `TERMINATED` or `ERROR`."""
        ...

    @property
    def error_file(self) -> str | None:
        """File in which Ray writes why the trial's process died; None if it did not die."""
        ...


class TuneController(Protocol):
    """Tune's loop, as a scheduler sees it."""

    def get_live_trials(self) -> Iterable[TuneTrial]:
        """Returns the trials that have not ended, in no particular order."""
        ...


class LoggedRun(Protocol):
    """A run as Ray's loggers see it: they treat it as a trial of Tune."""

    trial_id: str
    config: dict[str, object]
    """Hyperparameters by name."""
    local_path: str
    """Folder for the logger's files."""


class RunLogger(Protocol):
    """One of Ray's loggers (`ray.tune.logger.LoggerCallback`)."""

    def setup(self) -> None:
        """Connects to the logger's server, or opens its files."""

    def log_trial_start(self, trial: LoggedRun) -> None:
        """Opens a run."""

    def log_trial_result(self, iteration: int, trial: LoggedRun, result: dict[str, float]) -> None:
        """Writes numbers by name; the step is `result["training_iteration"]`."""

    def log_trial_end(self, trial: LoggedRun, failed: bool = False) -> None:
        """Closes a run."""

    def on_experiment_end(self, trials: Sequence[TuneTrial]) -> None:
        """Waits until everything is sent."""
