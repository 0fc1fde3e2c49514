"""In which order trials start."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class InOrder(FIFOScheduler):
    """Starts trials in the order in which they came.

    So does Ray's own scheduler, which looks for the next one among all trials at each step of each, those that are over, too: in
    a study of thousands a trial would cost more the more there were before it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: dict[str, int] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """A trial waits to start, for the first time or again: then it keeps its place."""
        self._places.setdefault(trial.trial_id, len(self._places))

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first trial that waits, of those that are paused only where no other does; None where none does."""
        waiting = [trial for trial in tune_controller.get_live_trials() if trial.status in (Trial.PENDING, Trial.PAUSED)]
        return min(waiting, key=lambda trial: (trial.status == Trial.PAUSED, self._places[trial.trial_id]), default=None)
