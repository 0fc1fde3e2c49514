"""In which order trials start."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class InOrder(FIFOScheduler):
    """Starts trials in the order in which they came.

    So does Ray's own scheduler, which looks for the next one among all trials at each step of each,
    those that are over, too: in a study of thousands a trial would cost more the more there were
    before it.

    A trial for which a process is being started is passed over while another waits: the one that is
    chosen takes the process that another trial leaves. If that were the one whose process starts,
    Tune would end that process and start one for the other, and so on while trials are over sooner
    than a process is there (seconds, one core): all would run in the first process.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: dict[str, int] = {}
        self._chosen: set[str] = set()

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """A trial waits to start, for the first time or again: then it keeps its place."""
        self._places.setdefault(trial.trial_id, len(self._places))
        self._chosen.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The first trial that waits, of those that are paused only where no other does; None where
        none does.
        """

        def place(trial: Trial) -> tuple[bool, bool, int]:
            return (
                trial.status == Trial.PAUSED,
                trial.trial_id in self._chosen,
                self._places[trial.trial_id],
            )

        waiting = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
        ]
        chosen = min(waiting, key=place, default=None)
        if chosen is not None:
            # from now on a process is being started for it, unless it takes a free one
            self._chosen.add(chosen.trial_id)
        return chosen
