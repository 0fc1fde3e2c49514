"""Starting Ray quietly on this machine, or joining a cluster; and how many trials fit at a time."""

import contextlib
import logging
import math
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kdr.config.study import Resources
from kdr.errors import ResourcesError

# Ray and Tune read these when they are imported or when a process starts.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own snapshots of the experiment are never read: the log is a study's memory.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the observer is told, without a traceback
    "TUNE_WARN_THRESHOLD_S": "60",
}


@dataclass(frozen=True)
class TrialResources:
    """What one trial takes, in numbers."""

    cpus: float
    gpus: float


@contextlib.contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Ray, running: a local one of this process's own, or the cluster at `address`. Shut down at the end.

    Raises:
        ResourcesError: if the cluster cannot be joined.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    started = not ray.is_initialized()
    if started:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env={"env_vars": QUIET},
                )
            except ConnectionError as error:
                raise ResourcesError(
                    f"--address: needs a running Ray cluster, got {address} ({error}). Try --address auto"
                ) from error
    try:
        yield
    finally:
        if started:
            ray.shutdown()


def trial_resources(resources: Resources) -> TrialResources:
    """What one trial takes on the Ray that is running: `auto` becomes one GPU per worker where there are any."""
    per_worker = resources.gpus_per_worker
    if per_worker == "auto":
        per_worker = 1.0 if any(node.get("GPU", 0) >= 1 for node in _nodes()) else 0.0
    return TrialResources(cpus=resources.workers * resources.cpus_per_worker, gpus=resources.workers * per_worker)


def num_concurrent(trial: TrialResources, resources: Resources) -> int:
    """How many trials fit at a time on the nodes of the Ray that is running.

    Raises:
        ResourcesError: if not even one fits.
    """
    nodes = _nodes()
    fit: int = sum(
        min(math.floor(node.get(name, 0.0) / needed) for name, needed in (("CPU", trial.cpus), ("GPU", trial.gpus)) if needed)
        for node in nodes
    )
    if fit < 1:
        largest: dict[str, float] = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
        raise ResourcesError(
            f"resources: one trial needs {trial.cpus:g} CPUs and {trial.gpus:g} GPUs on one node, "
            f"got at most {largest.get('CPU', 0):g} CPUs and {largest.get('GPU', 0):g} GPUs. "
            "Lower resources.cpus_per_worker, resources.gpus_per_worker or resources.workers, or name a cluster with --address"
        )
    return min(fit, resources.max_concurrent or fit)


def _nodes() -> list[dict[str, float]]:
    """Resources of each node that is alive."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]
