"""Tells Ray's loggers of trials as kdr means them: each attempt at a trial is a run of its own,
whose steps are epochs.

A run is named for people and by key, since Tune's own trials have names that mean nothing. It is
opened with the first epoch that is reported, because only then it is known which attempt this is;
an attempt that goes on from a checkpoint repeats the epochs before it, so each run is whole.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from kdr.config.trial import Trial
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.schema import Role
from kdr.run.attempt.trial_actor import trial_from
from kdr.run.observer import Observer
from kdr.storage.layout import Storage


class ShownTrial:
    """An attempt at a trial, as Ray's loggers ask a trial of Tune.

    Args:
        name: of the run.
        settings: its hyperparameters by dotted path.
        folder: takes its files.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], folder: Path) -> None:
        self.trial_id = f"{name[-32:]}-{uuid.uuid4().hex[:8]}"
        self.config = self.evaluated_params = dict(settings)
        self.local_path = str(folder)
        self._name = name

    def init_local_path(self) -> None:
        """Makes the folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self._name


class ShownTrials(tune.Callback):
    """Passes what Tune tells of trials on to loggers. One that fails is left out from then on; the
    study goes on.

    Args:
        loggers: Ray's callbacks by name; those that fail are taken out.
        storage: where everything lies.
        study: name of the study.
        observer: is told of a logger that fails.
        role: of the trials that are run.
        names: key -> name of the trial for people.
    """

    def __init__(
        self,
        loggers: dict[str, Any],
        storage: Storage,
        study: str,
        observer: Observer,
        *,
        role: Role,
        names: Mapping[str, str],
    ) -> None:
        self._loggers, self._folder, self._observer = loggers, storage.loggers(study), observer
        self._role, self._names = role, names
        self._open: dict[str, tuple[int, ShownTrial]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore an experiment, which a study never
        does.
        """
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Some epochs have ended, the last of them evaluated; or the trial has failed."""
        shown = self._run_of(trial, result["attempt"])
        for numbers in result["shown"]:
            # Ray's loggers take the step from here
            epoch = {**numbers, "training_iteration": numbers["epoch"]}
            self._tell("log_trial_result", iteration, shown, epoch)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has reached its last epoch, has failed by itself, or was stopped early."""
        self._end(trial.trial_id, failed=bool((trial.last_result or {}).get("failed")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial has died more often than it is started again."""
        self._end(trial.trial_id, failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Everything has ended; what still runs was interrupted."""
        for trial_id in list(self._open):
            self._end(trial_id, failed=True)
        self._tell("on_experiment_end", trials)

    def _run_of(self, trial: Any, attempt: int) -> ShownTrial:
        if trial.trial_id in self._open:
            before, shown = self._open[trial.trial_id]
            if before == attempt:
                return shown
            self._end(trial.trial_id, failed=True)  # its process died
        known = trial_from(trial.config)
        name = f"{self._label(known)}-{known.key}" + (f"-attempt-{attempt}" if attempt > 1 else "")
        shown = ShownTrial(
            name, {**_settings(known), "key": known.key, "attempt": attempt}, self._folder / name
        )
        shown.init_local_path()
        self._open[trial.trial_id] = attempt, shown
        self._tell("log_trial_start", shown)
        return shown

    def _label(self, trial: Trial) -> str:
        name = "teacher" if self._role == "teacher" else self._names.get(trial.key, "")
        return f"trial-{int(name):04}" if name.isdigit() else re.sub(r"[^\w.=+-]+", "-", name)[:100]

    def _end(self, trial_id: str, *, failed: bool) -> None:
        if trial_id in self._open:
            _, shown = self._open.pop(trial_id)
            self._tell("log_trial_end", shown, failed=failed)

    def _tell(self, event: str, *given: Any, **more: Any) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                getattr(logger, event)(*given, **more)
            except Exception as error:
                del self._loggers[name]
                self._observer.phase(
                    f"Going on without the logger {name}, which failed with "
                    f"{type(error).__name__}: {error}"
                )


def _settings(trial: Trial) -> dict[str, Any]:
    return {
        path: canonical(value)
        for path, value in flat_settings(trial.config.model_dump_json()).items()
    }
