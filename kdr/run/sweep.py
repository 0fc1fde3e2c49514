"""Trials of one study through Ray Tune, from a list or from a search, with every change of state in the log."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from kdr.config.search import EarlyStopping
from kdr.config.study import Resources, Study
from kdr.config.trial import Trial, TrialConfig
from kdr.errors import StorageError
from kdr.results.reader import read_log
from kdr.results.schema import Role
from kdr.results.writer import LogWriter
from kdr.run.early_stopping import make_scheduler
from kdr.run.gang import remove_leftover_groups
from kdr.run.history import History
from kdr.run.interruption import Interruption
from kdr.run.kept_weights import KeptWeights
from kdr.run.logged_fit import num_attempts
from kdr.run.loggers import open_loggers
from kdr.run.observer import Observer
from kdr.run.ray_session import local_ray_ends, num_gpus_of
from kdr.run.searcher import StudySearcher
from kdr.run.shown_trials import ShownTrials
from kdr.run.study_arms import note_arm
from kdr.run.trial_actor import ActorSettings, TrialActor, tune_config
from kdr.run.trial_events import TrialEvents
from kdr.run.trial_list import TrialList
from kdr.run.trial_order import InOrder
from kdr.storage import Storage


class Sweep:
    """Runs trials of one study, one list or search after another, on the Ray that is running.

    Args:
        study: the study that the trials belong to.
        storage: where everything lies.
        observer: is told how each trial comes on.
    """

    def __init__(self, study: Study, storage: Storage, observer: Observer) -> None:
        self.study, self.storage, self.observer = study, storage, observer
        self.metric = study.metric
        self.num_run = self.num_failed = 0
        self.interrupted = self.terminated = False
        self.hopeless = ""
        """Why the study was stopped, if its first trials all failed alike."""
        self._log = LogWriter(storage, study.study)
        self._names: dict[str, str] = {}
        self._ended: list[tuple[str, float | None]] = []
        self._loggers = open_loggers(study.loggers, study.study, storage)

    def run_search(
        self, make_trial: Callable[[TrialConfig], Trial], resources: Resources, num_concurrent: int, *, rerun: bool = False
    ) -> None:
        """Runs the study's search until its budget is used up, feeding the sampler with what the log knows."""
        search = self.study.search
        assert search is not None
        past = read_log(self.storage)
        self._log.after = past.newest_arm
        history = History.of(past, self.study, forget=rerun)
        self._names = {key: str(number) for key, number in history.numbers.items()}
        over = list(history.progress(self.metric))
        self._ended = [(ended.key, ended.value) for ended in over if ended.key in history.own]
        searcher = StudySearcher(
            self.study,
            journal=self.storage.search(self.study.study),
            config_of=self._config_of,
            make_trial=make_trial,
            known=history.known,
            interrupted=history.interrupted,
            num_used=history.num_used,
            hours_used=history.seconds_used / 3600,
            num_gpus=num_gpus_of(resources),
            gpu_hours_used=history.gpu_hours_used,
            on_known=self._plan,
            is_ending=lambda: self._interruption.is_ending,
        )
        num_done = history.num_used - len(history.interrupted)
        self.observer.plan(search.trials, num_done, num_concurrent)
        for ended in over:
            self.observer.update(ended)
        scheduler = None
        if search.stop_early != EarlyStopping():
            epochs, reached = self.study.base.training.epochs, history.reached.items()
            scheduler = make_scheduler(search.stop_early, metric=self.metric, max_epochs=epochs, past=reached)
        self._tune({}, resources, num_concurrent, searcher=searcher, scheduler=scheduler)

    def run_list(self, listed: TrialList, resources: Resources, num_concurrent: int, *, rerun: bool = False) -> None:
        """Runs what is missing of a list of trials, each to its full length."""
        past = read_log(self.storage)
        to_run = list(listed.trials.values()) if rerun else listed.missing(past)
        over = [] if rerun else list(listed.progress(past))
        self._names = {key: one.name for key, one in listed.trials.items()}
        self._ended = [] if rerun else listed.ended(past)
        self.observer.plan(len(listed.trials), len(over), num_concurrent)
        for progress in over:
            self.observer.update(progress)
        configs = [self._tune_config(one.trial, parameters=one.parameters) for one in to_run]
        self._tune(_grid(configs), resources, num_concurrent)

    def run_teachers(self, teachers: Sequence[Trial], resources: Resources) -> None:
        """Trains teachers, one after the other."""
        self._tune(_grid(list(map(self._tune_config, teachers))), resources, 1, role="teacher")

    def _tune(
        self,
        space: dict[str, Any],
        resources: Resources,
        num_concurrent: int,
        *,
        role: Role = "student",
        searcher: StudySearcher | None = None,
        scheduler: Any = None,
    ) -> None:
        self._interruption = Interruption(self.study.resources.grace_s, local_ray_ends)
        settings = ActorSettings(
            storage=self.storage,
            study=self.study.study,
            resources=resources,
            role=role,
            silence_s=self.study.faults.silence_s,
            may_be_stopped=scheduler is not None,
        )
        actor = tune.with_resources(
            tune.with_parameters(TrialActor, settings=settings), tune.PlacementGroupFactory([_of_actor(resources)])
        )
        kept = None if role == "teacher" else KeptWeights(self.storage, self.study.keep_weights, self._ended)
        events = TrialEvents(
            self.study,
            self.storage,
            self.observer,
            role=role,
            metric=self.metric,
            names=self._names,
            faults=self.study.faults,
            kept_weights=kept,
            on_report=self._interruption.trial_reported,
            on_no_storage=self._interruption.end_now,
            on_hopeless=self._interruption.end_now,
        )
        callbacks: list[tune.Callback] = [events]
        if self._loggers:
            shown = ShownTrials(self._loggers, self.storage, self.study.study, self.observer, role=role, names=self._names)
            callbacks.append(shown)
        tuner = tune.Tuner(
            actor,
            param_space=space,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler or InOrder(),
                num_samples=-1 if searcher else 1,
                max_concurrent_trials=num_concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"{role}-{os.getpid()}",
                storage_path=str(self.storage.ray / self.study.study),
                verbose=0,
                callbacks=callbacks,
                failure_config=tune.FailureConfig(max_failures=self.study.faults.retries),
            ),
        )
        try:
            with self._interruption:
                tuner.fit()
        finally:
            events.close()
            if not self._interruption.ray_has_ended:
                remove_leftover_groups()
        if events.storage_problem is not None:
            raise StorageError(events.storage_problem)
        self.num_run += events.num_run if role == "student" else 0
        self.num_failed += events.num_failed
        self.hopeless = self.hopeless or events.hopeless
        self.interrupted |= self._interruption.happened and not events.hopeless
        self.terminated |= self._interruption.is_ending

    def _config_of(self, trial: Trial, *, parameters: dict[str, Any], trials_known: int) -> dict[str, Any]:
        self._plan(trial, parameters)
        return self._tune_config(trial, parameters=parameters, trials_known=trials_known)

    def _tune_config(self, trial: Trial, **columns: Any) -> dict[str, Any]:
        return tune_config(trial, attempts_before=num_attempts(self.storage, trial.key), **columns)

    def _plan(self, trial: Trial, parameters: dict[str, Any]) -> None:
        """Notes a trial of the study, before it is launched."""
        number = self._names.setdefault(trial.key, str(len(self._names) + 1))
        note_arm(self._log, self.study, trial, number=int(number), parameters=parameters)


def _grid(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tune's space of a list of trials, which it runs in this order."""
    return {"trial": tune.grid_search([config["trial"] for config in configs])}


def _of_actor(resources: Resources) -> dict[str, float]:
    """What a trial's actor takes. One that has workers takes nothing: it would wait for them while they wait for its CPU."""
    if resources.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}  # Tune refuses to take nothing at all
    assert resources.gpus_per_worker != "auto"
    return {"CPU": resources.cpus_per_worker, **({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {})}
