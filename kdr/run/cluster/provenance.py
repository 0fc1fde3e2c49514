"""Provenance of a result: commit, package versions, host and device."""

import functools
import importlib.metadata
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("kdr", "torch", "torchvision", "ray", "optuna", "faster-coco-eval", "pyarrow", "numpy")


@functools.cache
def provenance() -> dict[str, Any]:
    """Returns a trial's columns commit, dirty, versions, host and device; read once per process."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": (
            {"python": platform.python_version()} | {name: version_of(name) for name in PACKAGES}
        ),
        "host": socket.gethostname(),
        "device": _device(),
    }


def _commit() -> tuple[str | None, bool | None]:
    folder = Path(__file__).parent
    try:
        run = functools.partial(
            subprocess.run, cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        if not run(["git", "ls-files", "--", Path(__file__).name]).stdout:
            # an installed copy inside another repository, for example in its .venv
            return None, None
        commit = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        return commit, bool(
            # untracked files are left out: notes and runs beside the code do not change results
            run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
        )
    except (OSError, subprocess.SubprocessError):
        return None, None


def version_of(package: str) -> str:
    """Returns the version of a package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()
