"""Waits until one trial fits into the free resources of a shared cluster."""

import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import ray

from kdr.run.cluster.trial_resources import Node, ResolvedResources, num_workers
from kdr.run.observer import Observer

_CHECK_EVERY_S = 1.0
_MAX_COMMAND = 200
"""Longest command that is printed, in characters; longer ones are cut off."""


def wait_for_room(needed: ResolvedResources, observer: Observer) -> None:
    """Waits until one trial fits into the free resources, and reports what it waits for.

    Nothing is reserved meanwhile. If two studies see the same free resources, one of them gets
    them, and Ray queues the other's trials.

    Args:
        needed: the resources of one trial.
        observer: receives a line whenever the situation changes.
    """
    reported = ""
    while True:
        # node by node: the sum over the cluster may be enough where no node has room for a worker
        free = [dict(node) for node in _state().available_resources_per_node().values()]
        if has_room(needed, free):
            return
        text = waiting_text(needed, free, _commands_of_others())
        if text != reported:
            observer.phase(text)
            reported = text
        time.sleep(_CHECK_EVERY_S)


def has_room(needed: ResolvedResources, free: Sequence[Node]) -> bool:
    """Returns whether one trial fits into the free resources of the nodes."""
    return sum(num_workers(node, needed) for node in free) >= needed.workers


def waiting_text(needed: ResolvedResources, free: Sequence[Node], others: Sequence[str]) -> str:
    """Returns the message of a waiting study, with the commands of drivers that hold resources."""
    cpus, gpus = (sum(node.get(name, 0.0) for node in free) for name in ("CPU", "GPU"))
    held_by = ", ".join(map(_short, others)) or "processes that have just ended"
    return (
        f"Waiting for room: one trial needs {needed}; free: {cpus:g} CPUs and {gpus:g} GPUs. Held "
        f"by: {held_by}"
    )


def _short(command: str) -> str:
    """Shortens a command: the program and script without their folders."""
    program, *rest = command.split()
    script = [PurePath(rest[0]).name] if rest else []
    return " ".join([PurePath(program).name, *script, *rest[1:]])[:_MAX_COMMAND]


def _commands_of_others() -> list[str]:
    # Ray does not report which job holds which resources; naming all live jobs is close enough
    mine = ray.get_runtime_context().get_job_id()
    jobs = [job for job in _state().jobs() if not job["IsDead"] and job["JobID"] != mine]
    return sorted({job["Entrypoint"] for job in jobs if job["Entrypoint"].strip()})


def _state() -> Any:
    # free resources node by node are not in Ray's public API (2.60)
    import ray._private.state

    return ray._private.state
