"""Resources of one trial, and how many trials fit on the nodes of a cluster."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdr.config.study import Resources
from kdr.errors import ResourcesError

Node = Mapping[str, float]
"""Resources of a node, total or free, by Ray's names such as CPU and GPU."""
_ROUNDING = 1e-6
"""Ray counts resources in steps of 0.0001 and reports sums of floats, so 0.1 GPU may read as
0.0999."""


@dataclass(frozen=True)
class ResolvedResources:
    """Resources of one trial: a study's `resources` with `auto` replaced by a number of GPUs."""

    workers: int = 1
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0
    loader_workers: int = 0
    """Processes that load images, for each worker."""
    max_concurrent: int | None = None
    """Most trials at a time; None: as many as fit."""
    max_trials_per_start: int = 100
    """Trials after which a gang of workers is restarted."""

    @property
    def num_gpus(self) -> float:
        """GPUs of one trial, all its workers together."""
        return self.workers * self.gpus_per_worker

    def __str__(self) -> str:
        each = f"{self.cpus_per_worker:g} CPUs and {self.gpus_per_worker:g} GPUs"
        return (
            f"{self.workers} workers with {each} each"
            if self.workers > 1
            else f"{each} on one node"
        )


def resolve(resources: Resources, nodes: Sequence[Node]) -> ResolvedResources:
    """Returns the resources of one trial; `auto` is one GPU per worker if any node has a GPU, else
    none.
    """
    gpus = resources.gpus_per_worker
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    return ResolvedResources(
        workers=resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=gpus,
        loader_workers=resources.loader_workers,
        max_concurrent=resources.max_concurrent,
        max_trials_per_start=resources.max_trials_per_start,
    )


def num_concurrent(needed: ResolvedResources, nodes: Sequence[Node]) -> int:
    """Returns how many trials fit at a time on the nodes of a cluster.

    The workers of a trial may be spread over nodes, so nodes are counted in workers.

    Raises:
        ResourcesError: if not even one fits.
    """
    workers_that_fit = sum(num_workers(node, needed) for node in nodes)
    num_trials = workers_that_fit // needed.workers
    if num_trials < 1:
        found = ", ".join(
            f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes
        )
        raise ResourcesError(
            f"resources: one trial needs {needed}, got nodes with {found}: room for "
            f"{workers_that_fit} workers. Lower resources.cpus_per_worker, "
            "resources.gpus_per_worker or resources.workers, or name a cluster with --address"
        )
    return min(num_trials, needed.max_concurrent or num_trials)


def num_workers(node: Node, needed: ResolvedResources) -> int:
    """Returns how many workers fit on a node, or on its free part.

    Ray never splits a fraction of a GPU over two GPUs, so fractions are counted GPU by GPU: two
    workers of 0.4 fit on each, not five on two.
    """
    gpus = needed.gpus_per_worker
    fit = math.floor(node.get("CPU", 0.0) / needed.cpus_per_worker + _ROUNDING)
    if not gpus:
        return fit
    # the remainder is what others have left of one shared GPU
    whole, remainder = divmod(node.get("GPU", 0.0) + _ROUNDING, 1)
    if gpus >= 1:
        return min(fit, math.floor(whole / gpus))
    per_gpu, on_remainder = (math.floor(free / gpus + _ROUNDING) for free in (1, remainder))
    return min(fit, int(whole) * per_gpu + on_remainder)


def num_cpus_here() -> int:
    """Returns how many CPUs of this machine this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
