"""What a run tells whoever watches it. The command line draws it; the engine does not know how."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from kdr.training.findings import Finding


@dataclass(frozen=True)
class TrialUpdate:
    """How far one trial has come."""

    name: str
    """For people: `teacher`, the trial's number in a search, or an arm with its seed."""
    key: str
    state: str
    """running, completed, stopped_early, failed, cancelled or interrupted."""
    epoch: int
    epochs: int
    value: float | None = None
    """The searched metric at the last evaluated epoch."""
    parameters: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    """Why it failed, was cancelled, or is started again."""


def ignore(*_: object) -> None:
    """A listener for whoever does not listen."""


class Observer(Protocol):
    """Watches a study run."""

    def phase(self, text: str) -> None:
        """A new part of the run has begun."""

    def finding(self, finding: "Finding") -> None:
        """The pre-flight has found something."""

    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None:
        """Says how many trials the study has, how many of them are done, and how many run at a
        time.
        """

    def update(self, progress: TrialUpdate) -> None:
        """One trial has come further."""
