"""Runs in TensorBoard, Weights & Biases and MLflow: one per attempt, with epochs as steps.

Tune's own trials have names that mean nothing to people, and steps that restart at 1 when a trial
is retried. So Ray's loggers receive these runs instead. A run opens with the first report of an
attempt, because only the actor knows which attempt this is. An attempt that resumed from a
checkpoint repeats the epochs before it, so every run is complete.
"""

import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ray import tune

from kdr.config.trial import Trial
from kdr.results.flat_settings import canonical, flat_settings
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.observer import Observer
from kdr.run.trial_report import TrialReport
from kdr.run.tune_protocols import RunLogger, TuneTrial
from kdr.storage.layout import Storage

_LONGEST_NAME = 100


class ShownTrial:
    """An attempt at a trial, with the attributes that Ray's loggers read from a trial of Tune.

    Args:
        name: name of the run.
        settings: hyperparameters by dotted path.
        folder: folder for the run's files.
    """

    def __init__(self, name: str, settings: Mapping[str, object], folder: Path) -> None:
        # wandb uses it as a run's id, which must be new each time, and short
        self.trial_id = f"{name[-32:]}-{uuid.uuid4().hex[:8]}"
        self.config = self.evaluated_params = dict(settings)
        self.local_path = str(folder)
        self._name = name

    def init_local_path(self) -> None:
        """Creates the folder."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self._name


class ShownTrials(tune.Callback):
    """Passes reports of trials to loggers. A logger that raises is dropped, and the study
    continues.

    Args:
        loggers: Ray's loggers by name; those that raise are removed from it.
        storage: the storage with the loggers' files.
        study: name of the study.
        observer: is notified when a logger is dropped.
        names: key -> display name of the trial.
    """

    def __init__(
        self,
        loggers: dict[str, RunLogger],
        storage: Storage,
        study: str,
        observer: Observer,
        *,
        names: Mapping[str, str],
    ) -> None:
        self._loggers, self._folder, self._observer = loggers, storage.loggers(study), observer
        self._names = names
        self._open: dict[str, tuple[int, ShownTrial]] = {}
        """Tune's id of a trial -> its attempt and that attempt's run."""

    def __getstate__(self) -> dict[str, object]:
        """Returns nothing: Tune pickles callbacks to restore experiments, which kdr never does."""
        return {}

    def on_trial_result(
        self,
        iteration: int,
        trials: Sequence[TuneTrial],
        trial: TuneTrial,
        result: Mapping[str, object],
        **info: object,
    ) -> None:
        """Logs the epochs of a report; the last one is evaluated, unless the trial failed."""
        report = TrialReport.of_result(result)
        if report is None:
            return
        run = self._run_of(trial, report.attempt)
        for numbers in report.epochs:
            self._log(iteration, run, numbers)

    def on_trial_complete(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Closes the run of a trial that completed, failed by itself, or was stopped by the
        scheduler.
        """
        report = TrialReport.of_result(trial.last_result)
        self._close(trial.trial_id, failed=report is not None and report.failure_kind is not None)

    def on_trial_error(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Closes the run of a trial whose process died with no retries left."""
        self._close(trial.trial_id, failed=True)

    def on_experiment_end(self, trials: Sequence[TuneTrial], **info: object) -> None:
        """Closes the runs of interrupted trials; called when Tune is about to return."""
        for trial_id in list(self._open):
            self._close(trial_id, failed=True)
        self._for_each(lambda logger: logger.on_experiment_end(trials))

    def _log(self, iteration: int, run: ShownTrial, numbers: Mapping[str, float]) -> None:
        # Ray's loggers take the step from `training_iteration`
        result = {**numbers, "training_iteration": numbers["epoch"]}
        self._for_each(lambda logger: logger.log_trial_result(iteration, run, result))

    def _run_of(self, trial: TuneTrial, attempt: int) -> ShownTrial:
        if trial.trial_id in self._open:
            attempt_before, run = self._open[trial.trial_id]
            if attempt_before == attempt:
                return run
            self._close(trial.trial_id, failed=True)  # its process died
        known = LaunchedTrial.of_config(trial.config).trial
        name = f"{self._label(known.key)}-{known.key}"
        name += f"-attempt-{attempt}" if attempt > 1 else ""
        settings = {**_settings(known), "key": known.key, "attempt": attempt}
        run = ShownTrial(name, settings, self._folder / name)
        run.init_local_path()
        self._open[trial.trial_id] = attempt, run
        self._for_each(lambda logger: logger.log_trial_start(run))
        return run

    def _label(self, key: str) -> str:
        """Returns a trial's display name, made safe for file names."""
        name = self._names.get(key, "")
        if name.isdigit():
            return f"trial-{int(name):04}"
        return re.sub(r"[^\w.=+-]+", "-", name)[:_LONGEST_NAME]

    def _close(self, trial_id: str, *, failed: bool) -> None:
        if trial_id in self._open:
            _, run = self._open.pop(trial_id)
            self._for_each(lambda logger: logger.log_trial_end(run, failed=failed))

    def _for_each(self, action: Callable[[RunLogger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                action(logger)
            except Exception as error:  # anything that a server or a disk may raise
                del self._loggers[name]
                self._observer.phase(
                    f"Dropped the logger {name}, which failed with {type(error).__name__}: {error}"
                )


def _settings(trial: Trial) -> dict[str, object]:
    settings = flat_settings(trial.config.model_dump_json())
    return {path: canonical(value) for path, value in settings.items()}
