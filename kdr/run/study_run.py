"""A whole study on Ray: its teacher first, then its trials. Run again, it does what is missing."""

import os
import shutil
import time
from dataclasses import dataclass, replace

from kdr.config.study import Resources, Study
from kdr.config.trial import Trial
from kdr.data.splits import open_splits
from kdr.errors import ResourcesError, TrialFailure
from kdr.plan.arm_checks import check_design
from kdr.plan.inputs import data_of
from kdr.plan.space import check_space
from kdr.results.compact import compact
from kdr.results.reader import Log, read_log
from kdr.results.schema import SCHEMAS
from kdr.results.writer import LogWriter
from kdr.run.attempt.logged_fit import has_weights, teacher_of
from kdr.run.cluster.ray_session import nodes_of_ray, ray_session
from kdr.run.cluster.trial_resources import ResolvedResources, num_concurrent, resolve
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.run.kept_weights import KeptWeights
from kdr.run.loggers import check_loggers
from kdr.run.observer import Observer
from kdr.run.preflight import check_before_start
from kdr.run.trial_identity import trial_maker
from kdr.run.trial_list import TrialList
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended."""

    num_run: int
    """Trials that this run trained, to their end or until they were stopped early."""
    num_failed: int
    interrupted: bool
    """Whether Ctrl-C, SIGTERM or SIGHUP ended it."""
    seconds: float
    terminated: bool = False
    """Whether SIGTERM or SIGHUP ended it."""
    abort_reason: str = ""
    """Why it was stopped, if its first trials all failed alike."""


def run_study(
    study: Study,
    *,
    storage: Storage,
    observer: Observer,
    address: str | None = None,
    send_code: bool = False,
    rerun: bool = False,
    preflight: bool = False,
) -> Outcome:
    """Runs what is missing of a study.

    Args:
        study: what to run.
        storage: where log, checkpoints and weights go.
        observer: is told what happens.
        address: a Ray cluster to join; None starts Ray on this machine.
        send_code: send this kdr to the nodes of the cluster, in place of what is installed there.
        rerun: run trials again whose results are known.
        preflight: look at the cluster's nodes (`kdr.run.cluster.readiness`), and at the study's
            base trial once its teacher is there (`kdr.run.preflight`).

    Raises:
        KdrError: for anything wrong with the study, the data, the storage or the machine, before
            training begins.
        BusyError: if another process runs this study.
        TrialFailure: if the teacher cannot be trained.
    """
    storage.check_writable()
    storage = storage.patient()
    with (
        sole_driver(storage, study.study, on_waiting=observer.phase) as driver,
        TrialClaims(storage, study.study, driver) as claims,
    ):
        return _run_alone(
            study,
            storage,
            observer,
            address,
            claims,
            send_code=send_code,
            rerun=rerun,
            preflight=preflight,
        )


def _run_alone(
    study: Study,
    storage: Storage,
    observer: Observer,
    address: str | None,
    claims: TrialClaims,
    *,
    send_code: bool,
    rerun: bool,
    preflight: bool,
) -> Outcome:
    begin = time.monotonic()
    _remove_orphans(storage, study)
    check_loggers(study.loggers)
    check_space(study)
    check_design(study)
    if address is None:
        _check_fits_here(study.resources)
    observer.phase("Opening the data")
    for data in data_of(study):
        open_splits(data, storage)
    make = trial_maker(study, storage)
    listed = TrialList(study, make) if study.search is None else None
    past = read_log(storage)
    missing = (
        [make(study.base)] if listed is None else _noted(listed, study, storage, past, rerun=rerun)
    )
    if listed is not None and not missing:
        # a run that was killed may not have come to it
        KeptWeights(storage, study.keep_weights, listed.ended(past))
        return Outcome(0, 0, False, time.monotonic() - begin)
    needed_teachers = {
        teacher.key: teacher for trial in missing if (teacher := teacher_of(trial)) is not None
    }

    def untrained(past: Log) -> list[Trial]:
        return [
            teacher
            for teacher in needed_teachers.values()
            if rerun or not _is_trained(teacher, past, storage)
        ]

    teachers = untrained(past)
    for key in needed_teachers.keys() - {teacher.key for teacher in teachers}:
        storage.forget_progress(key)  # of a run that was killed before it could
    observer.phase("Starting Ray")
    with ray_session(address, send_code=send_code):
        from kdr.run.sweep import Sweep

        nodes = nodes_of_ray()
        needed = resolve(study.resources, nodes)
        concurrent = num_concurrent(needed, nodes)
        if (
            study.search is not None
            and study.search.gpu_hours is not None
            and not needed.gpus_per_worker
        ):
            raise ResourcesError(
                f"search.gpu_hours: needs trials that hold GPUs, got {study.search.gpu_hours:g} "
                "and none for a trial here. Use search.trials or search.hours, or a machine with "
                "GPUs"
            )
        if address is not None and preflight:
            from kdr.run.cluster.readiness import check_nodes

            observer.phase("Looking at the nodes")
            check_nodes(study, storage, observer)
        if address is not None:
            from kdr.run.cluster.room import wait_for_room

            wait_for_room(needed, observer)
        sweep = Sweep(study, storage, observer, claims)
        try:
            if teachers:
                observer.phase(
                    "Training the teacher" if len(teachers) == 1 else "Training the teachers"
                )
                sweep.run_teachers(
                    teachers, _alone(needed, local=address is None), missing=untrained
                )
                if sweep.num_failed:
                    named = ", ".join(teacher.key for teacher in teachers)
                    raise TrialFailure(
                        "error", f"the teacher could not be trained. See the log: trial {named}"
                    )
            if preflight and not sweep.interrupted:
                base, local = make(study.base), address is None
                check_before_start(
                    study, base, storage=storage, observer=observer, needed=needed, local=local
                )
            if not sweep.interrupted:
                observer.phase("Running trials")
                if listed is None:
                    sweep.run_search(make, needed, concurrent, rerun=rerun)
                else:
                    sweep.run_list(listed, needed, concurrent, rerun=rerun)
        finally:
            shutil.rmtree(storage.ray / study.study, ignore_errors=True)
            _remove_orphans(storage, study)
        compact(storage, study.study)
    seconds = time.monotonic() - begin
    return Outcome(
        sweep.num_run,
        sweep.num_failed,
        sweep.interrupted,
        seconds,
        sweep.terminated,
        sweep.abort_reason,
    )


def _remove_orphans(storage: Storage, study: Study) -> None:
    """Removes what killed processes have left half-written in the study's log."""
    for table in SCHEMAS:
        storage.fragments(table, study.study).remove_orphans()


def _is_trained(teacher: Trial, past: Log, storage: Storage) -> bool:
    """Whether a teacher's training is over. Killed after its weights were written, it is not before
    the log says so.
    """
    state = past.states().get(teacher.key)
    return has_weights(teacher, storage) and (
        state is None or state.state not in ("running", "interrupted")
    )


def _noted(
    listed: TrialList, study: Study, storage: Storage, past: Log, *, rerun: bool
) -> list[Trial]:
    """The trials of a list that are to run; which ones the study uses is in the log by then,
    whoever has run them.
    """
    with LogWriter(storage, study.study, after=past.newest_arm) as writer:
        listed.note(writer, past)
    return [one.trial for one in (listed.trials.values() if rerun else listed.missing(past))]


def _alone(needed: ResolvedResources, *, local: bool) -> ResolvedResources:
    """What the teacher takes: nothing else runs beside it, so on this machine it gets every CPU."""
    if not local or needed.gpus_per_worker:
        return needed
    cpus_per_worker = max(needed.cpus_per_worker, _num_cpus_here() // needed.workers)
    return replace(needed, cpus_per_worker=cpus_per_worker)


def _num_cpus_here() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_fits_here(resources: Resources) -> None:
    """Refuses a trial that needs more CPUs than this machine has, before Ray starts."""
    needed = resources.workers * resources.cpus_per_worker
    if needed > _num_cpus_here():
        raise ResourcesError(
            f"resources: one trial needs {needed:g} CPUs, got {_num_cpus_here()} on this machine. "
            "Lower resources.cpus_per_worker or resources.workers, or name a cluster with "
            "--address"
        )
