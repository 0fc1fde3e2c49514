"""The context in which a study's driver runs trials, and how runs of trials end."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdr.config.study import Study
from kdr.run.driver.trial_claims import TrialClaims
from kdr.run.observer import Observer
from kdr.run.tune_protocols import RunLogger
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class StudyDriver:
    """Everything that the runs of one study's trials share."""

    study: Study
    storage: Storage
    observer: Observer
    """Receives every change of a trial's state."""
    claims: TrialClaims
    """The claims of this driver. It waits for trials that another driver claimed; afterwards their
    results are known, or they run here."""
    loggers: dict[str, RunLogger] = field(default_factory=dict)
    """Ray's loggers by name. A logger is removed when it raises."""


@dataclass(frozen=True)
class RunEnd:
    """How a run of trials ended, or several in a row."""

    num_run: int = 0
    """Students that ended: completed, stopped early, failed or cancelled."""
    num_failed: int = 0
    """Trials that failed, teachers included."""
    interrupted: bool = False
    """Whether Ctrl-C, SIGTERM or SIGHUP ended the run."""
    terminated: bool = False
    """Whether SIGTERM or SIGHUP ended the run."""
    abort_reason: str = ""
    """Why the study was aborted: its first trials all failed for the same reason."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more may start."""
        return self.interrupted or bool(self.abort_reason)

    def then(self, later: "RunEnd") -> "RunEnd":
        """Returns the end of this run and a later one together."""
        return RunEnd(
            self.num_run + later.num_run,
            self.num_failed + later.num_failed,
            self.interrupted or later.interrupted,
            self.terminated or later.terminated,
            self.abort_reason or later.abort_reason,
        )


Names = Mapping[str, str]
"""Key of a trial -> its display name; a search adds names while its trials run."""
Ended = tuple[str, float | None]
"""Key of a trial that ended, and the searched metric at its last epoch."""
