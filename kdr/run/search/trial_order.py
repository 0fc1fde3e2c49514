"""The order in which trials start."""

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler

from kdr.run.tune_protocols import TuneController, TuneTrial


class InOrder(FIFOScheduler):
    """Starts trials in the order in which they were added.

    Differs from Ray's FIFOScheduler (2.60) in two ways; each can go when Ray does the same:

    - Ray's scheduler searches all trials for the next one, even the ended ones, at each step of
      Tune's loop: the more trials have ended, the more each new one costs. This one searches only
      live trials.
    - Ray's scheduler may choose a trial whose process is still starting. Under `reuse_actors`, Tune
      gives the chosen trial a process that another trial has left, ends the process that was
      starting, and starts a new one for the next trial. While trials are shorter than the start of
      a process (seconds), no second process ever becomes ready, and all trials run in the first. So
      here a trial that was chosen before comes after all others.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places: dict[str, int] = {}
        """Tune's id of a trial -> its place in the order."""
        self._chosen: set[str] = set()
        """Trials whose process is starting, unless they took a free one."""

    def on_trial_add(self, tune_controller: TuneController | None, trial: TuneTrial) -> None:  # noqa: ARG002
        """Adds a trial that waits to start; a retried trial keeps its place."""
        self._places.setdefault(trial.trial_id, len(self._places))
        self._chosen.discard(trial.trial_id)

    def choose_trial_to_run(self, tune_controller: TuneController) -> TuneTrial | None:  # type: ignore[override]
        """Returns the first waiting trial; paused trials come after all others."""
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
