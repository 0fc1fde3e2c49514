"""Ended trials as a search sees them: plain values, taken from the log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

End = Literal["completed", "stopped_early", "failed"]
"""How a trial ended: at its last epoch, by early stopping, or with an error or a NaN result."""


@dataclass(frozen=True)
class KnownTrial:
    """An ended trial, which need not run again."""

    key: str
    """Key of the trial (`kdr.plan.keys`)."""
    end: End
    """How it ended."""
    value: float | None = None
    """The searched metric at the last epoch; None unless `end` is `completed`."""
    intermediate: Mapping[int, float] = field(default_factory=dict)
    """Epoch -> the searched metric, for evaluated epochs."""
    parameters: Mapping[str, Any] | None = None
    """Searched settings as drawn, by path; None if another study ran the trial."""
