"""One run of Ray Tune over trials of a study, with every change of state in the log."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ray import tune
from ray.tune.schedulers import TrialScheduler

from kdr.errors import StorageError
from kdr.results.schema import Role
from kdr.run.attempt.trial_actor import ActorSettings, TrialActor
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.driver.interruption import Interruption
from kdr.run.engine.gang import remove_leftover_groups
from kdr.run.kept_weights import KeptWeights
from kdr.run.launched_trial import LaunchedTrial, as_tune_grid
from kdr.run.search.searcher import StudySearcher
from kdr.run.search.trial_order import InOrder
from kdr.run.shown_trials import ShownTrials
from kdr.run.study_driver import Ended, Names, RunEnd, StudyDriver
from kdr.run.trial_events import TrialEvents


@dataclass(frozen=True)
class Searched:
    """Trials that a search proposes."""

    searcher: StudySearcher
    scheduler: TrialScheduler | None
    """Stops trials early; None runs each to its end."""


@dataclass(frozen=True)
class Trials:
    """Trials that one run of Tune trains."""

    source: Sequence[LaunchedTrial] | Searched
    needed: ResolvedResources
    """Resources of each trial."""
    num_concurrent: int
    names: Names
    role: Role = "student"
    ended: Sequence[Ended] = ()
    """This study's trials that ended before: their weights compete with those of new trials."""

    @property
    def scheduler(self) -> TrialScheduler | None:
        """The scheduler that stops trials early, if there is one."""
        return self.source.scheduler if isinstance(self.source, Searched) else None


def run_on_tune(driver: StudyDriver, trials: Trials, interruption: Interruption) -> RunEnd:
    """Runs trials until their source is exhausted, or a signal or a failure ends them.

    Args:
        driver: the study's driver.
        trials: what to run.
        interruption: a new object, for this run alone.

    Raises:
        StorageError: if the storage was no longer writable.
    """
    events = _events(driver, trials, interruption)
    callbacks: list[tune.Callback] = [events]
    if driver.loggers:
        study = driver.study.study
        callbacks.append(
            ShownTrials(driver.loggers, driver.storage, study, driver.observer, names=trials.names)
        )
    tuner = _tuner(driver, trials, callbacks)
    try:
        with interruption:
            tuner.fit()
    finally:
        # Both must happen however Tune ended: a trial without an end in the log would seem to run,
        # and the group of a killed gang would hold its CPUs and GPUs until Ray ends.
        events.close()
        if not interruption.ray_has_ended:
            remove_leftover_groups()
    if events.storage_problem is not None:
        raise StorageError(events.storage_problem)
    return RunEnd(
        num_run=events.num_run if trials.role == "student" else 0,
        num_failed=events.num_failed,
        # an abort ends Tune in the same way as Ctrl-C does
        interrupted=interruption.happened and not events.abort_reason,
        terminated=interruption.is_ending,
        abort_reason=events.abort_reason,
    )


def _events(driver: StudyDriver, trials: Trials, interruption: Interruption) -> TrialEvents:
    keep = driver.study.keep_weights
    # the weights of a teacher always stay
    kept = KeptWeights(driver.storage, keep, trials.ended) if trials.role == "student" else None

    def trial_ended(key: str, value: float | None) -> None:
        if kept is not None:
            kept.add(key, value)
        driver.claims.release(key)  # last: from now on another driver may use its files

    return TrialEvents(
        driver.study,
        driver.storage,
        driver.observer,
        role=trials.role,
        names=trials.names,
        stopper=interruption,
        on_ended=trial_ended,
    )


def _tuner(driver: StudyDriver, trials: Trials, callbacks: list[tune.Callback]) -> tune.Tuner:
    study, source = driver.study, trials.source
    settings = ActorSettings(
        storage=driver.storage,
        study=study.study,
        resources=trials.needed,
        silence_s=study.faults.silence_s,
        role=trials.role,
        may_be_stopped=trials.scheduler is not None,
    )
    space, searcher = (
        ({}, source.searcher) if isinstance(source, Searched) else (as_tune_grid(source), None)
    )
    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialActor, settings=settings),
            tune.PlacementGroupFactory([_actor_resources(trials.needed)]),
        ),
        param_space=space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=trials.scheduler or InOrder(),
            num_samples=1 if searcher is None else -1,  # -1: until the searcher returns FINISHED
            max_concurrent_trials=trials.num_concurrent,
            # one process trains one trial after another: starting a process takes seconds
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=f"{trials.role}-{os.getpid()}",
            storage_path=str(driver.storage.ray / study.study),
            verbose=0,
            callbacks=callbacks,
            failure_config=tune.FailureConfig(max_failures=study.faults.retries),
        ),
    )


def _actor_resources(needed: ResolvedResources) -> dict[str, float]:
    """Returns what Ray reserves for a trial's actor.

    An actor with a gang takes nothing: Ray Train 2.60 always makes a placement group of its own for
    the workers, and an actor that held a CPU could wait for ever for workers that need it (ray
    #54305).
    Tune refuses an empty request, hence the share of a resource that every head has. Both can go
    when Train's workers can be placed inside the group of their trial.
    """
    if needed.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}
    gpus = {"GPU": needed.gpus_per_worker} if needed.gpus_per_worker else {}
    return {"CPU": needed.cpus_per_worker, **gpus}
