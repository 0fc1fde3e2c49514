"""Waiting for room on a cluster that others use, too: until one trial fits beside what they
hold.
"""

import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import ray

from kdr.run.cluster.trial_resources import Node, ResolvedResources, num_workers
from kdr.run.observer import Observer

_LOOK_EVERY_S = 1.0
_LONGEST_COMMAND = 200


def wait_for_room(needed: ResolvedResources, observer: Observer) -> None:
    """Waits until one trial fits on what is free of the cluster, and tells what it waits for.

    Nothing is held meanwhile. When two studies see the same room, one of them gets it, and Ray lets
    the other's trials wait.

    Args:
        needed: what one trial takes.
        observer: is told, once for each change.
    """
    told = ""
    while True:
        free = [dict(node) for node in _state().available_resources_per_node().values()]
        if has_room(needed, free):
            return
        text = waiting_text(needed, free, _commands_of_others())
        if text != told:
            observer.phase(text)
            told = text
        time.sleep(_LOOK_EVERY_S)


def has_room(needed: ResolvedResources, free: Sequence[Node]) -> bool:
    """Whether one trial fits on what is free of each node."""
    return sum(num_workers(node, needed) for node in free) >= needed.workers


def waiting_text(needed: ResolvedResources, free: Sequence[Node], others: Sequence[str]) -> str:
    """What a study waits for, and who holds it: the commands of others that have joined the
    cluster.
    """
    cpus, gpus = (sum(node.get(name, 0.0) for node in free) for name in ("CPU", "GPU"))
    held_by = ", ".join(map(_short, others)) or "processes that have ended just now"
    return (
        f"Waiting for room: one trial needs {needed}; free are {cpus:g} CPUs and {gpus:g} "
        f"GPUs. Held by: {held_by}"
    )


def _short(command: str) -> str:
    """A command without the folders of its program and script."""
    program, *rest = command.split()
    script = [PurePath(rest[0]).name] if rest else []
    return " ".join([PurePath(program).name, *script, *rest[1:]])[:_LONGEST_COMMAND]


def _commands_of_others() -> list[str]:
    mine = ray.get_runtime_context().get_job_id()
    jobs = [job for job in _state().jobs() if not job["IsDead"] and job["JobID"] != mine]
    return sorted({job["Entrypoint"] for job in jobs if job["Entrypoint"].strip()})


def _state() -> Any:
    import ray._private.state

    return ray._private.state
