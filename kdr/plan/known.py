"""What a search is told of trials that have ended before: the log hands it over as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["completed", "stopped_early", "failed"]
"""How a trial ended: at its last epoch, stopped by the study's rule, or with an error or a result
that is no number."""


@dataclass(frozen=True)
class KnownTrial:
    """A trial whose end is known, so that it need not run again."""

    key: str
    """Key of the trial (`kdr.plan.keys`)."""
    end: End
    """How it ended."""
    value: float | None = None
    """The searched metric at the last epoch; None unless completed."""
    intermediate: Mapping[int, float] = field(default_factory=dict)
    """Epoch -> the searched metric, for the epochs that were evaluated."""
    parameters: Mapping[str, Any] | None = None
    """Searched settings by path, as they were drawn; None if another study ran the trial: its key
    counts all the same."""
