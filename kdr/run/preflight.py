"""The pre-flight of a study: its base trial is looked at where its trials will train, before the
budget is spent.
"""

from kdr.config.study import Study
from kdr.config.trial import Trial
from kdr.errors import KdrError, PreflightError
from kdr.run.attempt.logged_fit import has_weights, teacher_of
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.observer import Observer
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.training.findings import Preflight, findings_of, load_preflight, save_preflight


def check_before_start(
    study: Study,
    trial: Trial,
    *,
    storage: Storage,
    observer: Observer,
    needed: ResolvedResources,
    local: bool,
) -> None:
    """Measures a trial where trials will train, unless that has been done before, and tells what
    was found.

    That is a task on the Ray that is running. Where trials use the CPUs of this machine it is this
    process, which has torch imported already: starting another one would take longer than
    measuring.

    Args:
        study: the study.
        trial: its base trial.
        storage: where data and teachers lie; what was measured is kept there.
        observer: is told every finding.
        needed: what a trial takes; the task takes what one worker does.
        local: whether trials train on this machine.

    Raises:
        PreflightError: if a check failed.
    """
    teacher = teacher_of(trial)
    if teacher is not None and not has_weights(teacher, storage):
        return  # no trial of this run needs that teacher
    observer.phase("Pre-flight")
    measured = load_preflight(storage, study.study, trial)
    if measured is None:
        pictures = storage.preflight(study.study)
        here = local and not needed.gpus_per_worker
        found = (
            _measured(trial, storage, pictures)
            if here
            else _measured_on_ray(trial, storage, pictures, needed)
        )
        if not isinstance(found, Preflight):
            raise PreflightError(found)
        measured = found
        save_preflight(storage, study.study, trial, measured)
    findings = list(findings_of(measured, trial.config))
    for finding in findings:
        observer.finding(finding)
    if failed := [
        f"{finding.name}: {finding.text}. {finding.fix}"
        for finding in findings
        if finding.state == "failed"
    ]:
        raise PreflightError(failed)


def _measured_on_ray(
    trial: Trial, storage: Storage, pictures: StoredPath, needed: ResolvedResources
) -> Preflight | list[str]:
    import ray

    task = ray.remote(num_cpus=needed.cpus_per_worker, num_gpus=min(1, needed.gpus_per_worker))(
        _measured
    )
    found: Preflight | list[str] = ray.get(task.remote(trial, storage, pictures))
    return found


def _measured(trial: Trial, storage: Storage, pictures: StoredPath) -> Preflight | list[str]:
    """What was measured; or the problem, as lines: Ray would bury an error under its own."""
    from kdr.training.preflight import measure

    try:
        return measure(trial, storage=storage, pictures=pictures)
    except KdrError as error:
        return str(error).splitlines()
