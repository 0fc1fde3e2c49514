"""The pre-flight of a study: its base trial is looked at where its trials will train, before the budget is spent."""

from pathlib import Path

from kdr.config.study import Resources, Study
from kdr.config.trial import Trial
from kdr.errors import KdrError, PreflightError
from kdr.run.logged_fit import has_weights, teacher_of
from kdr.run.observer import Observer
from kdr.storage import Storage
from kdr.training.findings import Preflight, judged, keep_preflight, kept_preflight


def check_before_start(study: Study, trial: Trial, *, storage: Storage, observer: Observer, needed: Resources) -> None:
    """Measures a trial in a task on the Ray that is running, unless that has been done before, and tells what was found.

    Args:
        study: the study.
        trial: its base trial.
        storage: where data and teachers lie; what was measured is kept there.
        observer: is told every finding.
        needed: what a trial takes, with a number of GPUs; the task takes what one worker does.

    Raises:
        PreflightError: if a check failed.
    """
    teacher = teacher_of(trial)
    if teacher is not None and not has_weights(teacher, storage):
        return  # no trial of this run needs that teacher
    observer.phase("Pre-flight")
    measured = kept_preflight(storage, study.study, trial)
    if measured is None:
        measured = _measured_on_ray(trial, storage, storage.preflight(study.study), needed)
        keep_preflight(storage, study.study, trial, measured)
    findings = list(judged(measured, trial.config))
    for finding in findings:
        observer.finding(finding)
    if failed := [f"{finding.name}: {finding.text}. {finding.mend}" for finding in findings if finding.state == "failed"]:
        raise PreflightError(failed)


def _measured_on_ray(trial: Trial, storage: Storage, pictures: Path, needed: Resources) -> Preflight:
    import ray

    assert needed.gpus_per_worker != "auto"
    task = ray.remote(num_cpus=needed.cpus_per_worker, num_gpus=min(1, needed.gpus_per_worker))(_measured)
    found: Preflight | list[str] = ray.get(task.remote(trial, storage, pictures))
    if isinstance(found, Preflight):
        return found
    raise PreflightError(found)


def _measured(trial: Trial, storage: Storage, pictures: Path) -> "Preflight | list[str]":
    """What was measured; or the problem, as lines: Ray would bury an error under its own."""
    from kdr.training.preflight import measure

    try:
        return measure(trial, storage=storage, pictures=pictures)
    except KdrError as error:
        return str(error).splitlines()
