"""Reports from a run to its observer: the command line, a program, or a test."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kdr.training.findings import Finding


@dataclass(frozen=True)
class TrialUpdate:
    """The state of one trial, after a change or an epoch."""

    name: str
    """Display name: `teacher`, the trial's number in a search, or an arm with its seed."""
    key: str
    state: str
    """running, completed, stopped_early, failed, cancelled or interrupted."""
    epoch: int
    """Last finished epoch; 0 before the first."""
    epochs: int
    """Epochs of the whole trial."""
    value: float | None = None
    """The study's metric at the last evaluated epoch."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Settings that the study chose for the trial, by path."""
    reason: str = ""
    """Why the trial failed, was cancelled, or is being retried."""


def ignore(*_: object) -> None:
    """Does nothing; the default for callbacks."""


class Observer(Protocol):
    """Watches the run of a study."""

    def phase(self, text: str) -> None:
        """Called when the run enters a new phase."""

    def finding(self, finding: "Finding") -> None:
        """Called for each finding of the pre-flight."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Called when the run starts its trials.

        Args:
            num_trials: trials of the study; None for a search without a budget of trials.
            num_done: how many of them are done.
            num_concurrent: how many run at a time.
        """

    def update(self, progress: TrialUpdate) -> None:
        """Called when a trial makes progress or changes its state."""
