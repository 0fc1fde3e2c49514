"""The part of a study's run that needs a running Ray: room, teachers, pre-flight, trials."""

import shutil
from dataclasses import replace

from kdr.config.study import Study
from kdr.errors import ResourcesError, TrialFailure
from kdr.run.cluster.ray_session import nodes_of_ray
from kdr.run.cluster.readiness import check_nodes
from kdr.run.cluster.room import wait_for_room
from kdr.run.cluster.trial_resources import (
    ResolvedResources,
    num_concurrent,
    num_cpus_here,
    resolve,
)
from kdr.run.loggers import open_loggers
from kdr.run.preflight import check_before_start
from kdr.run.study_driver import RunEnd, StudyDriver
from kdr.run.study_work import StudyWork
from kdr.run.sweep import run_list, run_search, run_teachers


def run_on_ray(
    driver: StudyDriver, work: StudyWork, *, address: str | None, preflight: bool
) -> RunEnd:
    """Runs a study's missing teachers and trials on the running Ray.

    Args:
        driver: the study's driver, without loggers.
        work: the missing teachers and trials.
        address: the cluster that was joined; None for a Ray on this machine only.
        preflight: check the nodes of the cluster, and the base trial once its teacher is trained.

    Raises:
        KdrError: if the study cannot run here.
        TrialFailure: if a teacher failed.
    """
    study, storage = driver.study, driver.storage
    nodes = nodes_of_ray()
    needed = resolve(study.resources, nodes)
    num_at_a_time = num_concurrent(needed, nodes)
    _check_gpu_hours(study, needed)
    if address is not None:
        _prepare_cluster(driver, needed, preflight=preflight)
    # only now that the study can run: opening a logger may create a run on a server
    driver = replace(driver, loggers=open_loggers(study.loggers, study.study, storage))
    try:
        end = _train_teachers(driver, work, needed, local=address is None)
        if preflight and not end.is_final:
            check_before_start(
                study,
                work.make_trial(study.base),
                storage=storage,
                observer=driver.observer,
                needed=needed,
                local=address is None,
            )
        return end if end.is_final else end.then(_run_trials(driver, work, needed, num_at_a_time))
    finally:
        # Tune's own state of the experiment is never read: the log is a study's memory
        shutil.rmtree(storage.ray / study.study, ignore_errors=True)


def _check_gpu_hours(study: Study, needed: ResolvedResources) -> None:
    """Refuses a budget in GPU-hours if trials hold no GPU: the search would never end."""
    if study.search is None or study.search.gpu_hours is None or needed.num_gpus:
        return
    raise ResourcesError(
        f"search.gpu_hours: needs trials that hold GPUs, got {study.search.gpu_hours:g} for trials "
        "that hold none here. Use search.trials or search.hours, or a machine with GPUs"
    )


def _prepare_cluster(driver: StudyDriver, needed: ResolvedResources, *, preflight: bool) -> None:
    if preflight:
        driver.observer.phase("Checking the nodes")
        check_nodes(driver.study, driver.storage, driver.observer)
    # after the checks: a study that cannot run here must say so before it waits for hours
    wait_for_room(needed, driver.observer)


def _train_teachers(
    driver: StudyDriver, work: StudyWork, needed: ResolvedResources, *, local: bool
) -> RunEnd:
    teachers = work.untrained
    if not teachers:
        return RunEnd()
    driver.observer.phase("Training the teacher" if len(teachers) == 1 else "Training the teachers")
    alone = _with_all_cpus(needed) if local and not needed.num_gpus else needed
    end = run_teachers(driver, teachers, alone, missing=work.still_untrained)
    if end.num_failed:
        keys = ", ".join(teacher.key for teacher in teachers)
        raise TrialFailure("error", f"the teacher could not be trained. See the log: trial {keys}")
    return end


def _run_trials(
    driver: StudyDriver, work: StudyWork, needed: ResolvedResources, num_at_a_time: int
) -> RunEnd:
    driver.observer.phase("Running trials")
    if work.listed is None:
        return run_search(driver, work.make_trial, needed, num_at_a_time, rerun=work.rerun)
    return run_list(driver, work.listed, needed, num_at_a_time, rerun=work.rerun)


def _with_all_cpus(needed: ResolvedResources) -> ResolvedResources:
    """Returns the resources of a teacher on this machine: all CPUs, because it runs alone."""
    each = max(needed.cpus_per_worker, num_cpus_here() // needed.workers)
    return replace(needed, cpus_per_worker=each)
