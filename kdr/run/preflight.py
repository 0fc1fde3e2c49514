"""The pre-flight of a study: measures its base trial where its trials will train."""

from collections.abc import Iterable

from kdr.config.study import Study
from kdr.config.trial import Trial
from kdr.errors import KdrError, PreflightError
from kdr.run.attempt.logged_fit import has_weights, teacher_of
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.observer import Observer
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.training.findings import (
    Finding,
    Preflight,
    findings_of,
    load_preflight,
    save_preflight,
)


def check_before_start(
    study: Study,
    trial: Trial,
    *,
    storage: Storage,
    observer: Observer,
    needed: ResolvedResources,
    local: bool,
) -> None:
    """Measures a trial, unless a measurement is saved, and reports the findings.

    Args:
        study: the study.
        trial: its base trial.
        storage: the storage with data and teachers; the measurement is saved there.
        observer: receives every finding.
        needed: resources of one trial; the measurement takes those of one worker.
        local: whether trials train on this machine.

    Raises:
        PreflightError: if a check failed.
    """
    teacher = teacher_of(trial)
    if teacher is not None and not has_weights(teacher, storage):
        return  # no missing trial needs the teacher, so it was not trained
    observer.phase("Pre-flight")
    measured = load_preflight(storage, study.study, trial)
    if measured is None:
        pictures = storage.preflight(study.study)
        measured = _measured(trial, storage, pictures, needed=needed, local=local)
        save_preflight(storage, study.study, trial, measured)
    findings = list(findings_of(measured, trial.config))
    for finding in findings:
        observer.finding(finding)
    _refuse_failed(findings)


def _measured(
    trial: Trial,
    storage: Storage,
    pictures: StoredPath,
    *,
    needed: ResolvedResources,
    local: bool,
) -> Preflight:
    # Where trials use this machine's CPUs, this process measures: it has imported torch already,
    # and starting another one would take longer than measuring.
    found = (
        _preflight_or_problems(trial, storage, pictures)
        if local and not needed.num_gpus
        else _measured_on_ray(trial, storage, pictures, needed)
    )
    if not isinstance(found, Preflight):
        raise PreflightError(found)
    return found


def _measured_on_ray(
    trial: Trial, storage: Storage, pictures: StoredPath, needed: ResolvedResources
) -> Preflight | list[str]:
    import ray

    # at most one GPU: the measurement does not use several GPUs per worker
    task = ray.remote(num_cpus=needed.cpus_per_worker, num_gpus=min(1, needed.gpus_per_worker))(
        _preflight_or_problems
    )
    found: Preflight | list[str] = ray.get(task.remote(trial, storage, pictures))
    return found


def _preflight_or_problems(
    trial: Trial, storage: Storage, pictures: StoredPath
) -> Preflight | list[str]:
    """Returns the measurement, or an error as lines: Ray would wrap the error in its own."""
    from kdr.training.preflight import measure

    try:
        return measure(trial, storage=storage, pictures=pictures)
    except KdrError as error:
        return str(error).splitlines()


def _refuse_failed(findings: Iterable[Finding]) -> None:
    failed = [
        f"{finding.name}: {finding.text}. {finding.fix}"
        for finding in findings
        if finding.state == "failed"
    ]
    if failed:
        raise PreflightError(failed)
