"""Runs a study's teachers, its list of trials, or its search, each until nothing is missing."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from ray.tune.schedulers import TrialScheduler

from kdr.config.search import EarlyStopping
from kdr.config.study import Study
from kdr.config.trial import Trial, TrialConfig
from kdr.plan.points import Point
from kdr.results.reader import Log, read_log
from kdr.results.writer import LogWriter
from kdr.run.attempt.trial_folder import num_attempts
from kdr.run.cluster.ray_session import local_ray_ends
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.driver.interruption import Interruption
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.budget import SearchBudget
from kdr.run.search.early_stopping import make_scheduler
from kdr.run.search.history import History
from kdr.run.search.searcher import StudySearcher
from kdr.run.shared_trials import run_claimed_first, wait_for_others
from kdr.run.study_arms import note_arm
from kdr.run.study_driver import RunEnd, StudyDriver
from kdr.run.trial_list import TrialList
from kdr.run.tune_run import Searched, Trials, run_on_tune
from kdr.storage.layout import Storage


def run_teachers(
    driver: StudyDriver,
    teachers: Iterable[Trial],
    needed: ResolvedResources,
    *,
    missing: Callable[[Log], Iterable[Trial]],
) -> RunEnd:
    """Trains teachers, one after the other.

    Args:
        driver: the study's driver.
        teachers: the teachers to train.
        needed: resources of each trial.
        missing: returns the teachers that still have to be trained, given a log.
    """
    wanted = {teacher.key: teacher for teacher in teachers}

    def run(_past: Log, keys: list[str]) -> RunEnd:
        launched = [_launched(driver.storage, wanted[key]) for key in keys]
        names = dict.fromkeys(wanted, "teacher")
        # one at a time, because each may take the whole machine
        trials = Trials(launched, needed, num_concurrent=1, names=names, role="teacher")
        return run_on_tune(driver, trials, _interruption(driver))

    end, _ = run_claimed_first(
        driver, wanted, run=run, missing=lambda past: {one.key for one in missing(past)}
    )
    return end


def run_list(
    driver: StudyDriver,
    listed: TrialList,
    needed: ResolvedResources,
    num_concurrent: int,
    *,
    rerun: bool = False,
) -> RunEnd:
    """Runs the missing trials of a list, each to its full length.

    Args:
        driver: the study's driver.
        listed: the trials.
        needed: resources of each trial.
        num_concurrent: how many run at a time.
        rerun: run all of them, regardless of the log.
    """
    past = read_log(driver.storage)
    wanted = listed.trials if rerun else {one.trial.key: one for one in listed.missing(past)}
    num_all = len(listed.trials)
    driver.observer.plan(num_all, num_all - len(wanted), num_concurrent)
    _show_ended(driver, listed, past, listed.trials.keys() - wanted.keys())

    def run(past: Log, keys: list[str]) -> RunEnd:
        chosen = [wanted[key] for key in keys]
        trials = Trials(
            [_launched(driver.storage, one.trial, parameters=one.parameters) for one in chosen],
            needed,
            num_concurrent,
            names={key: one.name for key, one in listed.trials.items()},
            # with `rerun`, trials that ended before run again and must not count twice
            ended=[ended for ended in listed.ended(past) if ended[0] not in keys],
        )
        return run_on_tune(driver, trials, _interruption(driver))

    def missing(past: Log) -> Collection[str]:
        return wanted if rerun else {one.trial.key for one in listed.missing(past)}

    end, ended_by_others = run_claimed_first(driver, wanted, run=run, missing=missing)
    if ended_by_others:
        _show_ended(driver, listed, read_log(driver.storage), ended_by_others)
    return end


def run_search(
    driver: StudyDriver,
    make_trial: Callable[[TrialConfig], Trial],
    needed: ResolvedResources,
    num_concurrent: int,
    *,
    rerun: bool = False,
) -> RunEnd:
    """Runs the study's search until its budget or its space is used up.

    A session of the search also ends when other drivers train all the trials that are left. As soon
    as one of these is free, the next session reads the log again and starts.

    Args:
        driver: the driver of a study with a search.
        make_trial: gives a trial its identity.
        needed: resources of each trial.
        num_concurrent: how many run at a time.
        rerun: start the search over, regardless of the log.
    """
    end, claimed_by_others = _run_session(driver, make_trial, needed, num_concurrent, rerun=rerun)
    while claimed_by_others and not end.is_final:
        end = end.then(wait_for_others(driver, claimed_by_others))
        if end.is_final:
            break
        # without `rerun`: the results of the first session are known from now on
        later, claimed_by_others = _run_session(driver, make_trial, needed, num_concurrent)
        end = end.then(later)
    return end


def _run_session(
    driver: StudyDriver,
    make_trial: Callable[[TrialConfig], Trial],
    needed: ResolvedResources,
    num_concurrent: int,
    *,
    rerun: bool = False,
) -> tuple[RunEnd, set[str]]:
    """Runs a search from the current state of the log; also returns the keys of due trials that
    other drivers train.
    """
    study, storage = driver.study, driver.storage
    assert study.search is not None
    past = read_log(storage)
    history = History.of(past, study, forget=rerun)
    interruption = _interruption(driver)
    launcher = _SearchLauncher(
        driver,
        names={key: str(number) for key, number in history.numbers.items()},
        # after all arms so far: the last rows must be those of the current study file
        log=LogWriter(storage, study.study, after=past.newest_arm),
        interruption=interruption,
        rerun=rerun,
    )
    searcher = StudySearcher(
        study,
        journal=storage.search(study.study),
        history=history,
        budget=SearchBudget(study.search, history.used, gpus_per_trial=needed.num_gpus),
        launcher=launcher,
        make_trial=make_trial,
    )
    ended = list(history.progress(study.metric))
    # interrupted trials are already charged, but not done
    num_done = history.used.trials - len(history.interrupted)
    driver.observer.plan(study.search.trials, num_done, num_concurrent)
    for update in ended:
        driver.observer.update(update)
    trials = Trials(
        Searched(searcher, _scheduler(study, history)),
        needed,
        num_concurrent,
        names=launcher.names,
        ended=[(update.key, update.value) for update in ended if update.key in history.own],
    )
    return run_on_tune(driver, trials, interruption), searcher.claimed_by_others


@dataclass(frozen=True)
class _SearchLauncher:
    """Starts the trials of one session of a search (`kdr.run.search.searcher.Launcher`)."""

    driver: StudyDriver
    names: dict[str, str]
    """Key -> number of the trial as text; each new trial gets the next number."""
    log: LogWriter
    interruption: Interruption
    rerun: bool

    @property
    def is_ending(self) -> bool:
        return self.interruption.is_ending

    def may_run(self, key: str) -> bool:
        """Claims a trial, unless another driver trains it, or has completed it since this session
        read the log.
        """
        claims, storage = self.driver.claims, self.driver.storage
        if not claims.take([key]):
            return False
        # nearly all trials have never been attempted: for those, the log is not read again
        if self.rerun or not num_attempts(storage, key):
            return True
        state = read_log(storage).states().get(key)
        if state is None or state.state != "completed":
            return True
        claims.release(key)
        return False

    def note(self, trial: Trial, point: Point) -> None:
        """Notes in the log that the study uses a trial."""
        number = int(self.names.setdefault(trial.key, str(len(self.names) + 1)))
        note_arm(self.log, self.driver.study, trial, number=number, parameters=point)

    def launch(self, trial: Trial, point: Point, *, trials_known: int) -> LaunchedTrial:
        """Notes a trial before it starts: if the driver is killed in between, it is planned."""
        self.note(trial, point)
        return _launched(self.driver.storage, trial, parameters=point, trials_known=trials_known)


def _scheduler(study: Study, history: History) -> TrialScheduler | None:
    assert study.search is not None
    if study.search.stop_early == EarlyStopping():
        return None
    return make_scheduler(
        study.search.stop_early,
        metric=study.metric,
        max_epochs=study.base.training.epochs,
        past=history.reached.items(),
    )


def _launched(
    storage: Storage,
    trial: Trial,
    *,
    parameters: Point | None = None,
    trials_known: int | None = None,
) -> LaunchedTrial:
    return LaunchedTrial.of(
        trial,
        parameters=parameters,
        trials_known=trials_known,
        attempts_before=num_attempts(storage, trial.key),
    )


def _interruption(driver: StudyDriver) -> Interruption:
    return Interruption(driver.study.resources.grace_s, local_ray_ends)


def _show_ended(driver: StudyDriver, listed: TrialList, past: Log, keys: Collection[str]) -> None:
    """Updates the observer with trials that need not run."""
    for update in listed.progress(past):
        if update.key in keys:
            driver.observer.update(update)
