"""Trials of one study through Ray Tune, from a list or from a search, with every change of state in
the log.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from ray import tune

from kdr.config.search import EarlyStopping
from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.errors import StorageError
from kdr.results.reader import Log, read_log
from kdr.results.schema import Role
from kdr.results.writer import LogWriter
from kdr.run.attempt.logged_fit import num_attempts
from kdr.run.attempt.trial_actor import ActorSettings, TrialActor, tune_config
from kdr.run.cluster.ray_session import local_ray_ends
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.driver.interruption import GracePeriod, Interruption, Terminated, end_by_exception
from kdr.run.driver.trial_claims import Holder, TrialClaims
from kdr.run.engine.gang import remove_leftover_groups
from kdr.run.kept_weights import KeptWeights
from kdr.run.loggers import open_loggers
from kdr.run.observer import Observer
from kdr.run.search.early_stopping import make_scheduler
from kdr.run.search.history import History
from kdr.run.search.searcher import StudySearcher
from kdr.run.search.trial_order import InOrder
from kdr.run.shown_trials import ShownTrials
from kdr.run.study_arms import note_arm
from kdr.run.trial_events import TrialEvents
from kdr.run.trial_list import TrialList
from kdr.storage.layout import Storage

_LOOK_EVERY_S = 2.0
"""Seconds between two looks at what other drivers train."""


class Sweep:
    """Runs trials of one study, one list or search after another, on the Ray that is running.

    Args:
        study: the study that the trials belong to.
        storage: where everything lies.
        observer: is told how each trial comes on.
        claims: of this study's driver. A trial that another one trains is waited for, and then
            known or run.
    """

    def __init__(
        self, study: Study, storage: Storage, observer: Observer, claims: TrialClaims
    ) -> None:
        self.study, self.storage, self.observer, self.claims = study, storage, observer, claims
        self.metric = study.metric
        self.num_run = self.num_failed = 0
        self.interrupted = self.terminated = False
        self.abort_reason = ""
        """Why the study was stopped, if its first trials all failed alike."""
        self._log = LogWriter(storage, study.study)
        self._names: dict[str, str] = {}
        self._ended: list[tuple[str, float | None]] = []
        self._loggers = open_loggers(study.loggers, study.study, storage)

    def run_search(
        self,
        make_trial: Callable[[TrialConfig], Trial],
        resources: ResolvedResources,
        num_concurrent: int,
        *,
        rerun: bool = False,
    ) -> None:
        """Runs the study's search until its budget is used up, feeding the sampler with what the
        log knows.
        """
        while (
            elsewhere := self._search_once(make_trial, resources, num_concurrent, rerun=rerun)
        ) and not self._is_over:
            rerun = False  # what has been run is known from now on
            self._wait_for_others(elsewhere)

    def _search_once(
        self,
        make_trial: Callable[[TrialConfig], Trial],
        resources: ResolvedResources,
        num_concurrent: int,
        *,
        rerun: bool,
    ) -> set[str]:
        """Runs the search; gives the keys of trials that it asks for and that others train, if
        nothing else was left to run.
        """
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
            num_gpus=resources.num_gpus,
            gpu_hours_used=history.gpu_hours_used,
            on_known=self._plan,
            may_run=partial(self._may_run, rerun=rerun),
            is_ending=lambda: self._interruption.is_ending,
        )
        num_done = history.num_used - len(history.interrupted)
        self.observer.plan(search.trials, num_done, num_concurrent)
        for ended in over:
            self.observer.update(ended)
        scheduler = None
        if search.stop_early != EarlyStopping():
            epochs, reached = self.study.base.training.epochs, history.reached.items()
            scheduler = make_scheduler(
                search.stop_early, metric=self.metric, max_epochs=epochs, past=reached
            )
        self._tune({}, resources, num_concurrent, searcher=searcher, scheduler=scheduler)
        return searcher.elsewhere

    def run_list(
        self,
        listed: TrialList,
        resources: ResolvedResources,
        num_concurrent: int,
        *,
        rerun: bool = False,
    ) -> None:
        """Runs what is missing of a list of trials, each to its full length."""
        past = read_log(self.storage)
        wanted = listed.trials if rerun else {one.trial.key: one for one in listed.missing(past)}
        self._names = {key: one.name for key, one in listed.trials.items()}
        self.observer.plan(len(listed.trials), len(listed.trials) - len(wanted), num_concurrent)
        self._show(listed, past, listed.trials.keys() - wanted.keys())

        def run(past: Log, keys: Collection[str]) -> None:
            self._ended = [ended for ended in listed.ended(past) if ended[0] not in keys]
            configs = [
                self._tune_config(wanted[key].trial, parameters=wanted[key].parameters)
                for key in keys
            ]
            self._tune(_grid(configs), resources, num_concurrent)

        def missing(past: Log) -> Collection[str]:
            return wanted if rerun else {one.trial.key for one in listed.missing(past)}

        ended_by_others = self._run_those_of_others_last(wanted, run, missing)
        if ended_by_others:
            self._show(listed, read_log(self.storage), ended_by_others)

    def run_teachers(
        self,
        teachers: Iterable[Trial],
        resources: ResolvedResources,
        *,
        missing: Callable[[Log], Iterable[Trial]],
    ) -> None:
        """Trains teachers, one after the other.

        Args:
            teachers: to train.
            resources: of each.
            missing: those that are to be trained, as a log says.
        """
        wanted = {teacher.key: teacher for teacher in teachers}

        def run(_past: Log, keys: Collection[str]) -> None:
            self._tune(
                _grid([self._tune_config(wanted[key]) for key in keys]),
                resources,
                1,
                role="teacher",
            )

        self._run_those_of_others_last(wanted, run, lambda past: {one.key for one in missing(past)})

    @property
    def _is_over(self) -> bool:
        """Whether nothing more is to start."""
        return self.interrupted or bool(self.abort_reason)

    def _show(self, listed: TrialList, past: Log, keys: Collection[str]) -> None:
        """Tells the observer of trials that need not run."""
        for progress in listed.progress(past):
            if progress.key in keys:
                self.observer.update(progress)

    def _run_those_of_others_last(
        self,
        wanted: Iterable[str],
        run: Callable[[Log, Collection[str]], None],
        missing: Callable[[Log], Collection[str]],
    ) -> set[str]:
        """Runs trials by their keys; those that another driver trains only when it is done, and if
        they are missing then.

        Gives the keys of those that were not.
        """
        waiting, ended_by_others = list(wanted), set[str]()
        while waiting and not self._is_over:
            own = self.claims.take(waiting)
            # now that they are claimed: nobody ends one after this look
            past = read_log(self.storage)
            still = set(missing(past))
            for key in own - still:
                self.claims.release(key)
            to_run = [key for key in waiting if key in own & still]
            ended_by_others |= set(waiting) - still
            waiting = [key for key in waiting if key in still - own]
            if to_run:
                run(past, to_run)
            elif waiting:
                self._wait_for_others(waiting)
        return ended_by_others

    def _may_run(self, key: str, *, rerun: bool) -> bool:
        """Claims a trial of a search; not where another driver trains it, or has completed it since
        the search read the log.
        """
        if not self.claims.take([key]):
            return False
        if rerun or not num_attempts(self.storage, key):
            return True
        state = read_log(self.storage).states().get(key)
        if state is None or state.state != "completed":
            return True
        self.claims.release(key)
        return False

    def _wait_for_others(self, keys: Collection[str]) -> None:
        """Waits until one of these trials is not trained by another driver any more. Nothing of the
        cluster is held meanwhile.
        """
        told = ""
        try:
            with GracePeriod(0.0, end_by_exception):
                while set(keys) == _keys_of(holders := self.claims.holders(keys)):
                    what = "a trial that is" if len(keys) == 1 else f"{len(keys)} trials that are"
                    text = f"Waiting for {what} trained by {', '.join(map(str, holders))}"
                    if text != told:
                        self.observer.phase(text)
                        told = text
                    time.sleep(_LOOK_EVERY_S)
        except KeyboardInterrupt:
            self.interrupted = True
        except Terminated:
            self.interrupted = self.terminated = True
        if told and not self.interrupted:
            self.observer.phase("Going on")

    def _tune(
        self,
        space: dict[str, Any],
        resources: ResolvedResources,
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
            tune.with_parameters(TrialActor, settings=settings),
            tune.PlacementGroupFactory([_of_actor(resources)]),
        )
        kept = (
            None
            if role == "teacher"
            else KeptWeights(self.storage, self.study.keep_weights, self._ended)
        )
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
            on_ended=self.claims.release,
            on_no_storage=self._interruption.end_now,
            on_abort=self._interruption.end_now,
        )
        callbacks: list[tune.Callback] = [events]
        if self._loggers:
            shown = ShownTrials(
                self._loggers,
                self.storage,
                self.study.study,
                self.observer,
                role=role,
                names=self._names,
            )
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
        self.abort_reason = self.abort_reason or events.abort_reason
        self.interrupted |= self._interruption.happened and not events.abort_reason
        self.terminated |= self._interruption.is_ending

    def _config_of(
        self, trial: Trial, *, parameters: dict[str, Any], trials_known: int
    ) -> dict[str, Any]:
        self._plan(trial, parameters)
        return self._tune_config(trial, parameters=parameters, trials_known=trials_known)

    def _tune_config(self, trial: Trial, **columns: Any) -> dict[str, Any]:
        return tune_config(trial, attempts_before=num_attempts(self.storage, trial.key), **columns)

    def _plan(self, trial: Trial, parameters: dict[str, Any]) -> None:
        """Notes a trial of the study, before it is launched."""
        number = self._names.setdefault(trial.key, str(len(self._names) + 1))
        note_arm(self._log, self.study, trial, number=int(number), parameters=parameters)


def _keys_of(holders: Iterable[Holder]) -> set[str]:
    return {key for holder in holders for key in holder.keys}


def _grid(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Tune's space of a list of trials, which it runs in this order."""
    return {"trial": tune.grid_search([config["trial"] for config in configs])}


def _of_actor(resources: ResolvedResources) -> dict[str, float]:
    """What a trial's actor takes. One that has workers takes nothing: it would wait for them while
    they wait for its CPU.
    """
    if resources.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}  # Tune refuses to take nothing at all
    return {
        "CPU": resources.cpus_per_worker,
        **({"GPU": resources.gpus_per_worker} if resources.gpus_per_worker else {}),
    }
