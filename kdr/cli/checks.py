"""The checks of `doctor`: installation, machine, storage, Ray, and what a study needs."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kdr.errors import KdrError
from kdr.storage.layout import Storage
from kdr.training.findings import Finding, findings_of, load_preflight, save_preflight

if TYPE_CHECKING:
    from kdr.config.study import Study

FREE_GIB = 5.0
"""Free disk space below which `doctor` warns; enough for checkpoints and logs of a small study."""
TOKEN_FILE = Path("~/.ray/auth_token")


Check = Callable[[], Iterator[Finding]]


def run_checks(checks: dict[str, Check]) -> Iterator[Finding]:
    """Runs checks by name and yields their findings.

    A check that raises has failed; the others still run. An error that several checks raise, such
    as an unreachable storage, is reported once.
    """
    reported: set[str] = set()
    for name, check in checks.items():
        try:
            yield from check()
        except KdrError as error:
            if str(error) not in reported:
                yield Finding(name, "failed", str(error))
            reported.add(str(error))
        except Exception as error:
            yield Finding(
                name, "failed", f"{type(error).__name__}: {error}", "Unexpected: please report it"
            )


def installed_packages() -> Iterator[Finding]:
    """Checks Python, and the version of every package that kdr requires."""
    from packaging.requirements import Requirement

    yield Finding("python", "ok", f"{platform.python_version()}")
    wrong, versions = [], []
    for text in importlib.metadata.requires("kdr") or ():
        requirement = Requirement(text)
        # packages of extras such as [dev] are optional
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        # nightly builds of torch and release candidates are fine
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} must be {requirement.specifier}, got {version}")
        versions.append(f"{requirement.name} {version}")
    if wrong:
        yield Finding(
            "packages",
            "failed",
            "; ".join(wrong),
            "Reinstall: pip install -c constraints.txt -e .",
        )
    else:
        yield Finding("packages", "ok", ", ".join(versions))


def torch_pair() -> Iterator[Finding]:
    """Checks whether torchvision's operators run on the installed torch."""
    fix = "Install both at once from one index: pip install torch torchvision"
    try:
        import torch
        from torchvision.ops import nms

        # both import fine on their own; the mismatch shows when an operator runs
        nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, ImportError) as error:
        yield Finding(
            "torch", "failed", f"torch and torchvision must be a matching pair, got: {error}", fix
        )
        return
    import torchvision

    yield Finding(
        "torch",
        "ok",
        f"torch {torch.__version__} and torchvision {torchvision.__version__} match",
    )


def devices() -> Iterator[Finding]:
    """Reports GPUs with their memory, or the CPU."""
    import torch

    if not torch.cuda.is_available():
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        yield Finding(
            "device", "ok", f"torch finds no GPU: training runs on the CPU, {cores} cores"
        )
        return
    for number in range(torch.cuda.device_count()):
        free, total = (size / 2**30 for size in torch.cuda.mem_get_info(number))
        kinds = "with bf16" if torch.cuda.is_bf16_supported() else "without bf16"
        text = f"{torch.cuda.get_device_name(number)}, {free:.1f} of {total:.1f} GiB free, {kinds}"
        # a desktop session uses less; another training run uses more
        busy = free < total / 2
        yield Finding(
            f"GPU {number}",
            "warning" if busy else "ok",
            text,
            "Another process is using it. See nvidia-smi" if busy else "",
        )


def storage_folder(storage: Storage) -> Iterator[Finding]:
    """Checks whether the storage is writable and has room, and whether its log is readable."""
    from kdr.results.check import check_log

    storage.check_writable()
    # for an object store, the room in the local cache, where generated data and Ray's files go
    free = shutil.disk_usage(_existing(storage.local)).free / 2**30
    where = "" if storage.local == storage.root else f" on this machine, for {storage.local}"
    text = f"{storage.root}: writable, {free:.1f} GiB free{where}"
    little = free < FREE_GIB
    yield Finding(
        "storage",
        "warning" if little else "ok",
        text,
        "Free some space, or name another folder" if little else "",
    )
    problems = [finding for finding in check_log(storage) if finding.is_problem]
    for problem in problems:
        yield Finding(
            "log",
            "failed",
            f"{problem.where}: {problem.what}",
            "kdr log check --quarantine",
        )
    if not problems:
        yield Finding("log", "ok", "every file is readable")


def _existing(folder: Path) -> Path:
    """Returns the folder, or its nearest parent that exists: the storage may be new."""
    return folder if folder.exists() else _existing(folder.parent)


def ray_tokens() -> Iterator[Finding]:
    """Checks whether Ray requires a token; reports the token's source, never the token itself."""
    mode = os.environ.get("RAY_AUTH_MODE", "disabled")
    sources = {
        "the variable RAY_AUTH_TOKEN": "RAY_AUTH_TOKEN" in os.environ,
        "the file that RAY_AUTH_TOKEN_PATH names": "RAY_AUTH_TOKEN_PATH" in os.environ,
        f"the file {TOKEN_FILE}": TOKEN_FILE.expanduser().exists(),
    }
    source = next((name for name, found in sources.items() if found), None)
    text = f"mode {mode} (RAY_AUTH_MODE), {f'token from {source}' if source else 'no token'}"
    if mode == "token" and source is None:
        yield Finding(
            "Ray's token",
            "failed",
            text,
            "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token",
        )
    else:
        yield Finding("Ray's token", "ok", text)


def ray_cluster(
    address: str | None, study: "Study | None", storage: Storage, *, send_code: bool = False
) -> Iterator[Finding]:
    """Checks whether Ray starts or can be joined, whether a cluster's nodes are ready for a study,
    and how many of its trials fit.
    """
    from kdr.report.formatting import counted
    from kdr.run.cluster.ray_session import nodes_of_ray, ray_session
    from kdr.run.cluster.trial_resources import num_concurrent, resolve

    with ray_session(address, send_code=send_code):
        import ray

        nodes = nodes_of_ray()
        of_nodes = "; ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        place = f"the cluster at {address}" if address else "this machine"
        yield Finding(
            "Ray",
            "ok",
            f"ray {ray.__version__} on {place}, {counted(len(nodes), 'node')}: {of_nodes}",
        )
        if address is not None:
            from kdr.run.cluster.readiness import cluster_findings

            yield from cluster_findings(study, storage)
        if study is not None:
            needed = resolve(study.resources, nodes)
            size = (
                f"{needed.workers} x ({needed.cpus_per_worker:g} CPUs, {needed.gpus_per_worker:g} "
                "GPUs)"
            )
            yield Finding(
                "resources",
                "ok",
                f"{counted(num_concurrent(needed, nodes), 'trial')} at a time, of {size} each",
            )


def study_space(study: "Study") -> Iterator[Finding]:
    """Checks whether every point of a study's search space is a valid trial."""
    from kdr.plan.space import check_space

    if study.search is not None:
        check_space(study)
    yield Finding("study", "ok", f"{study.study}: every setting is valid")


def study_loggers(study: "Study") -> Iterator[Finding]:
    """Checks whether the packages of a study's loggers are installed."""
    from kdr.run.loggers import check_loggers

    check_loggers(study.loggers)
    yield Finding("loggers", "ok", ", ".join(study.loggers) or "none besides the log")


def study_data(study: "Study", storage: Storage) -> Iterator[Finding]:
    """Checks whether a study's images and annotations exist and match."""
    from kdr.data.splits import open_splits

    splits = open_splits(study.base.data, storage)
    yield Finding("training data", "ok", splits.train.summary())
    yield Finding("evaluation data", "ok", splits.evaluation.summary())


def study_detectors(study: "Study", storage: Storage) -> Iterator[Finding]:
    """Checks whether weights load and labels agree, and reports which level learns from which."""
    import torch

    from kdr.data.splits import open_splits
    from kdr.detectors.build import build_detector
    from kdr.detectors.weights import load_configured_weights
    from kdr.distill.levels import match_levels
    from kdr.run.trial_identity import trial_maker
    from kdr.training.shared_parts import SharedParts

    config = study.base
    categories = open_splits(config.data, storage).categories
    # the seed does not matter: only names, shapes and levels are checked
    student = build_detector(config.student, categories, seed=config.seed, new_classes=True)
    for report in load_configured_weights(student):
        yield Finding("student", "ok", report.line())
    if config.teacher is None or not config.needs_teacher:
        yield Finding("teacher", "ok", "not needed: plain training")
        return
    trained = config.teacher_trial() is not None
    if trained:
        teacher = build_detector(config.teacher, categories, seed=0)
        yield Finding("teacher", "ok", "the study trains it")
    else:
        teacher = SharedParts(storage).teacher(
            trial_maker(study, storage)(config), torch.device("cpu")
        )
        for report in load_configured_weights(teacher):  # again, for its report
            yield Finding("teacher", "ok", report.line())
        classes = (
            "part of its head has no weights: features only"
            if teacher.unloaded_head
            else "its labels match the data's"
        )
        yield Finding("teacher", "ok", f"{config.teacher.weights}: loads, and {classes}")
    pairs = match_levels(student.strides, teacher.strides)
    levels = ", ".join(
        f"{student.level_names[mine]} from {teacher.level_names[its]}" for mine, its in pairs
    )
    left = [name for level, name in enumerate(student.level_names) if level not in dict(pairs)]
    fix = "Their review links and losses are skipped" if left else ""
    text = f"{levels}{'; unmatched: ' + ', '.join(left) if left else ''}"
    yield Finding("levels", "warning" if left else "ok", text, fix)


def study_preflight(study: "Study", storage: Storage) -> Iterator[Finding]:
    """Checks the first step of a study's base trial, and its teacher's AP, as `run` does.

    An earlier measurement of this trial is reused, but judged again, because stated_ap may have
    changed.
    """
    from kdr.run.attempt.logged_fit import has_weights, teacher_of
    from kdr.run.trial_identity import trial_maker
    from kdr.training.preflight import measure

    trial = trial_maker(study, storage)(study.base)
    teacher = teacher_of(trial)
    if teacher is not None and not has_weights(teacher, storage):
        yield Finding(
            "pre-flight", "ok", "skipped: `kdr run` does it once the study has trained its teacher"
        )
        return
    measured = load_preflight(storage, study.study, trial)
    if measured is None:
        measured = measure(trial, storage=storage, pictures=storage.preflight(study.study))
        save_preflight(storage, study.study, trial, measured)
    yield from findings_of(measured, trial.config)


def all_checks(
    storage: Storage,
    *,
    address: str | None,
    study: "Study | None",
    send_code: bool = False,
    preflight: bool = True,
) -> dict[str, Check]:
    """Returns every check by name, in the order in which to fix failures."""
    checks: dict[str, Check] = {
        "packages": installed_packages,
        "torch": torch_pair,
        "device": devices,
        "storage": lambda: storage_folder(storage),
        "Ray's token": ray_tokens,
        "Ray": lambda: ray_cluster(address, study, storage, send_code=send_code),
    }
    if study is not None:
        checks |= {
            "study": lambda: study_space(study),
            "loggers": lambda: study_loggers(study),
            "data": lambda: study_data(study, storage),
            "detectors": lambda: study_detectors(study, storage),
        }
        if preflight:
            checks["pre-flight"] = lambda: study_preflight(study, storage)
    return checks
