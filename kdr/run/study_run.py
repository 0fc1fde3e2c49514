"""Runs a study: its teachers first, then its trials. A second run trains only what is missing."""

import time
from dataclasses import dataclass

from kdr.config.study import Resources, Study
from kdr.data.splits import open_splits
from kdr.errors import ResourcesError
from kdr.plan.arm_checks import check_design
from kdr.plan.inputs import data_of
from kdr.plan.space import check_space
from kdr.results.compact import compact
from kdr.results.schema import SCHEMAS
from kdr.run.cluster.ray_session import ray_session
from kdr.run.cluster.trial_resources import num_cpus_here
from kdr.run.driver.sole_driver import sole_driver
from kdr.run.driver.trial_claims import TrialClaims
from kdr.run.loggers import check_loggers
from kdr.run.observer import Observer
from kdr.run.study_driver import RunEnd, StudyDriver
from kdr.run.study_work import work_of
from kdr.storage.layout import Storage


@dataclass(frozen=True)
class Outcome:
    """How a run of a study ended."""

    num_run: int
    """Trials that this run trained, to their end or until they were stopped early."""
    num_failed: int
    interrupted: bool
    """Whether Ctrl-C, SIGTERM or SIGHUP ended the run."""
    seconds: float
    terminated: bool = False
    """Whether SIGTERM or SIGHUP ended the run."""
    abort_reason: str = ""
    """Why the run was aborted: its first trials all failed for the same reason."""


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
    """Runs a study's missing teachers and trials.

    Args:
        study: what to run.
        storage: where log, checkpoints and weights go.
        observer: receives phases, findings and the progress of trials.
        address: a Ray cluster to join; None starts Ray on this machine.
        send_code: send this kdr to the nodes of the cluster, in place of the one installed there.
        rerun: run trials again even if their results are known.
        preflight: check the cluster's nodes (`kdr.run.cluster.readiness`), and the study's base
            trial once its teacher is trained (`kdr.run.preflight`).

    Raises:
        KdrError: for anything wrong with the study, the data, the storage or the machine, before
            training begins.
        BusyError: if another process runs this study.
        TrialFailure: if the teacher cannot be trained.
    """
    storage.check_writable()
    storage = storage.patient()
    with (
        sole_driver(storage, study.study, on_waiting=observer.phase) as claim,
        TrialClaims(storage, study.study, claim) as claims,
    ):
        begin = time.monotonic()  # without the wait for a driver that may be dead
        driver = StudyDriver(study, storage, observer, claims)
        _remove_orphans(driver)
        _check_study(driver, local=address is None)
        end = _run_missing(driver, address, send_code=send_code, rerun=rerun, preflight=preflight)
        return Outcome(
            num_run=end.num_run,
            num_failed=end.num_failed,
            interrupted=end.interrupted,
            seconds=time.monotonic() - begin,
            terminated=end.terminated,
            abort_reason=end.abort_reason,
        )


def _check_study(driver: StudyDriver, *, local: bool) -> None:
    """Checks everything that can be checked before Ray starts."""
    study = driver.study
    check_loggers(study.loggers)
    check_space(study)
    check_design(study)
    if local:
        _check_fits_here(study.resources)
    # last, because it may read or draw every image
    driver.observer.phase("Opening the data")
    for data in data_of(study):
        open_splits(data, driver.storage)


def _run_missing(
    driver: StudyDriver, address: str | None, *, send_code: bool, rerun: bool, preflight: bool
) -> RunEnd:
    work = work_of(driver.study, driver.storage, rerun=rerun)
    if work is None:
        return RunEnd()
    driver.observer.phase("Starting Ray")
    with ray_session(address, send_code=send_code):
        # only now: on import, Ray and Tune read the variables that `ray_session` sets
        from kdr.run.study_on_ray import run_on_ray

        try:
            end = run_on_ray(driver, work, address=address, preflight=preflight)
        finally:
            _remove_orphans(driver)
        compact(driver.storage, driver.study.study)
    return end


def _remove_orphans(driver: StudyDriver) -> None:
    """Removes half-written files that killed processes left in the study's log."""
    for table in SCHEMAS:
        driver.storage.fragments(table, driver.study.study).remove_orphans()


def _check_fits_here(resources: Resources) -> None:
    """Refuses a trial that needs more CPUs than this machine has, before Ray starts."""
    needed = resources.workers * resources.cpus_per_worker
    if needed > num_cpus_here():
        raise ResourcesError(
            f"resources: one trial needs {needed:g} CPUs, got {num_cpus_here()} on this machine. "
            "Lower resources.cpus_per_worker or resources.workers, or name a cluster with "
            "--address"
        )
