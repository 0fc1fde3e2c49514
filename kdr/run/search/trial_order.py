"""The order in which trials start."""

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from kdr.run.tune_protocols import TuneController, TuneTrial


class InOrder(FIFOScheduler):
    """Starts trials in the order in which they were added.

    Two differences to Ray's FIFOScheduler (2.60), each of which can go when Ray has it:

    - That one searches all trials for the next, the ended ones included, at each step of Tune's
      loop: the more trials a study has behind it, the more each further one costs. This one
      searches the live ones.
    - That one may choose a trial whose process is still starting. Under `reuse_actors` Tune gives
      a chosen trial the process that another trial left, ends the process that was starting, and
      starts one again for the next trial. While trials are shorter than a start (seconds), no
      second process ever gets ready, and everything runs in the first. So a trial that was chosen
      before comes after those that were not.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: dict[str, int] = {}
        """Tune's id of a trial -> its place in the order."""
        self._chosen: set[str] = set()
        """Trials for which a process starts, unless they took a free one."""

    def on_trial_add(self, tune_controller: TuneController | None, trial: TuneTrial) -> None:  # noqa: ARG002
        """A trial waits to start. A retried trial keeps its place."""
        self._places.setdefault(trial.trial_id, len(self._places))
        self._chosen.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:  # type: ignore[override]
        """Returns the first trial that waits; paused ones come after all others."""
        waiting = [
            trial
            for trial in tune_controller.get_live_trials()
            if trial.status in (Trial.PENDING, Trial.PAUSED)
        ]
        chosen = min(waiting, key=self._rank, default=None)
        if chosen is not None:
            self._chosen.add(chosen.trial_id)
        return chosen

    def _rank(self, trial: TuneTrial) -> tuple[bool, bool, int]:
        was_chosen = trial.trial_id in self._chosen
        return trial.status == Trial.PAUSED, was_chosen, self._places[trial.trial_id]
