"""Starting Ray quietly on this machine, or joining a cluster."""

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

# Ray and Tune read these when they are imported or when a process starts.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon the death of a worker is noticed
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own snapshots of the experiment are never read: the log is a study's memory.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the observer is told, without a traceback
    "TUNE_WARN_THRESHOLD_S": "60",
}


_FROM_ELSEWHERE = "From a machine that is no node of it, submit a job: docs/cluster.md"
_OTHER_PORTS = {
    "8265": "that is the dashboard's port",
    "10001": "that is the port of Ray Client, through which Tune does not run",
}


@contextlib.contextmanager
def ray_session(address: str | None, *, send_code: bool = False) -> Iterator[None]:
    """Ray, running: a local one of this process's own, or the cluster at `address`. Shut down at
    the end.

    Args:
        address: `HOST:PORT` of a cluster's head, or `auto`; this machine must be one of its nodes.
        send_code: have the nodes import this kdr, and not what is installed there.

    Raises:
        ResourcesError: if the cluster cannot be joined.
    """
    _check_reachable(address)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # a full disk, which kdr tells of itself, shows here first, with a traceback; what is saved
    # there is never read
    logging.getLogger("ray.tune.execution.experiment_state").setLevel(logging.CRITICAL)
    started = not ray.is_initialized()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if started:
        with (
            warnings.catch_warnings(),
            _processes_in_groups_of_their_own(),
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
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put sys.exit(15) there
    try:
        yield
    finally:
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _processes_in_groups_of_their_own() -> Iterator[None]:
    """Keeps a signal to this process's group, as `timeout` and a closed terminal send it, from
    Ray's own processes.

    They would die of it at once, and this process with them, before it has ended anything in good
    order.
    """
    services: Any = importlib.import_module("ray._private.services")
    popen = services.ConsolePopen
    services.ConsolePopen = functools.partial(popen, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = popen


def local_ray_ends(within_s: float = 1.0) -> bool:
    """Whether a process of the Ray that this one has started ends within a second.

    So it does where SIGTERM has come to every process of a machine or a container. Whoever then
    asks anything of Ray waits for a minute, or is ended by Ray itself.
    """
    from ray._private.worker import _global_node

    end = time.monotonic() + within_s
    while _global_node is not None and time.monotonic() < end:
        if _global_node.dead_processes():
            return True
        time.sleep(0.02)
    return False


def job_runtime_env(code: Path | None) -> dict[str, Any]:
    """What every process of the job gets, in addition to what `ray job submit` was given, which
    stays as it is.

    Args:
        code: an empty folder that takes this kdr, for Ray to send, unless the job has sent a
            working_dir; None sends nothing.
    """
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env") or {}
    given = job.get("env_vars") or {}
    # Ray refuses to be told one twice
    variables = {name: value for name, value in QUIET.items() if name not in given}
    if code is None or "working_dir" in job:
        return {"env_vars": variables}
    # as working_dir and not as py_modules, before which the folder of the driver's script would be
    # searched
    package = Path(kdr.__file__).parent
    shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return {"env_vars": variables, "working_dir": str(code)}


def _check_reachable(address: str | None) -> None:
    """Refuses an address where nothing listens; Ray itself tries for a quarter of an hour."""
    if address in (None, "auto"):
        return
    host, _, port = str(address).rpartition(":")
    if not host or not port.isdigit() or "/" in host or port in _OTHER_PORTS:
        what = _OTHER_PORTS.get(port, "another form")
        raise ResourcesError(
            "--address: must be HOST:PORT of a cluster's head, as `ray start --head` prints it, "
            f"or auto, got {address}: {what}. {_FROM_ELSEWHERE}"
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise _not_joined(str(address), error) from error


def _not_joined(address: str, error: Exception) -> ResourcesError:
    reason = " ".join(str(error).split())
    return ResourcesError(
        f"--address: needs a running Ray cluster of which this machine is a node, got {address} "
        f"({reason}). Try --address auto; where the cluster asks for a token, set "
        f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN. {_FROM_ELSEWHERE}"
    )


def nodes_of_ray() -> list[Node]:
    """Each node of the Ray that is running, if it is alive."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]
