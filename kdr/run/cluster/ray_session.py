"""Starts Ray quietly on this machine, or joins a cluster."""

import contextlib
import functools
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kdr
from kdr.errors import ResourcesError
from kdr.run.cluster.trial_resources import Node

# Ray and Tune read these when they are imported or when a process starts. Without the zeros, one
# trial prints 64 lines, and Tune writes JSON, CSV and TensorBoard files that nobody asked for.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a worker's death is noticed this soon
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune rewrites its snapshot of all trials each time, 11 kB a trial, and kdr never reads it
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the observer reports them, without a traceback
    "TUNE_WARN_THRESHOLD_S": "60",
}


_FROM_OUTSIDE = "From a machine outside the cluster, submit a job: docs/cluster.md"
_OTHER_PORTS = {
    "8265": "that is the dashboard's port",
    "10001": "that is the port of Ray Client, which cannot run Tune",
}
"""Ports of a head node that users mistake for its address."""


@contextlib.contextmanager
def ray_session(address: str | None, *, send_code: bool = False) -> Iterator[None]:
    """Starts a local Ray, or joins the cluster at `address`, while the block runs.

    A Ray that this process has already started is used and not shut down.

    Args:
        address: `HOST:PORT` of a cluster's head, or `auto`; this machine must be one of its nodes.
        send_code: let the nodes import this kdr instead of the one installed there.

    Raises:
        ResourcesError: if the cluster cannot be joined.
    """
    _check_reachable(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # on a full disk Tune's snapshot fails first, with a traceback, before kdr reports the problem
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    started = not ray.is_initialized()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if started:
        with (
            warnings.catch_warnings(),
            _separate_process_groups(),
            tempfile.TemporaryDirectory() as code,
        ):
            warnings.simplefilter("ignore")
            try:
                ray.init(
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    runtime_env=job_runtime_env(Path(code) if send_code else None),
                )
            except (ConnectionError, RuntimeError, ray.exceptions.AuthenticationError) as error:
                if address is None:
                    raise
                raise _not_joined(address, error) from error
    # ray.init (2.60) installs a SIGTERM handler that exits at once
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    try:
        yield
    finally:
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _separate_process_groups() -> Iterator[None]:
    """Starts Ray's processes in process groups of their own.

    `timeout` and a closed terminal send their signal to the whole group of this process. The signal
    would end Ray's processes at once, and with them this process, before a graceful shutdown. Ray
    2.60 has no setting for this, so the block replaces the function with which Ray starts
    processes.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def local_ray_ends(within_s: float = 1.0) -> bool:
    """Returns whether a process of the local Ray ends within a second.

    This happens if SIGTERM was sent to every process of a machine or container. A call to Ray would
    then block for a minute, or Ray would end this process.
    """
    from ray._private.worker import _global_node

    end = time.monotonic() + within_s
    while _global_node is not None and time.monotonic() < end:
        if _global_node.dead_processes():
            return True
        time.sleep(0.02)
    return False


def job_runtime_env(code: Path | None) -> dict[str, Any]:
    """Returns the runtime_env of the job's processes, to be added to that of `ray job submit`.

    Args:
        code: an empty folder into which kdr is copied for Ray to send, unless the job already sent
            a working_dir; None sends nothing.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = job.get("env_vars") or {}
    # Ray refuses a variable that the job's own runtime_env sets as well
    variables = {name: value for name, value in QUIET.items() if name not in given}
    if code is None or "working_dir" in job:
        return {"env_vars": variables}
    # not as py_modules, which workers search only after the folder of the driver's script
    package = Path(kdr.__file__).parent
    shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return {"env_vars": variables, "working_dir": str(code)}


def _check_reachable(address: str | None) -> None:
    """Refuses an address on which nothing listens; Ray itself would retry for 15 minutes."""
    if address in (None, "auto"):
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "/" in host or port in _OTHER_PORTS:
        what = _OTHER_PORTS.get(port, "another form")
        raise ResourcesError(
            "--address: must be HOST:PORT of a cluster's head, as printed by `ray start --head`, "
            f"or auto, got {address}: {what}. {_FROM_OUTSIDE}"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _not_joined(str(address), error) from error


def _not_joined(address: str, error: Exception) -> ResourcesError:
    reason = " ".join(str(error).split())
    return ResourcesError(
        f"--address: must be a running Ray cluster with this machine as a node, got {address} "
        f"({reason}). Try --address auto; if the cluster requires a token, set "
        f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. {_FROM_OUTSIDE}"
    )


def nodes_of_ray() -> list[Node]:
    """Returns the resources of each live node of the running Ray."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]
