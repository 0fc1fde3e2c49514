"""TensorBoard, Weights & Biases and MLflow, through Ray's own callbacks. Optional: results are read
from the log alone.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

from kdr.config.study import LoggerName
from kdr.errors import PackageError
from kdr.run.tune_protocols import RunLogger
from kdr.storage.layout import Storage

_PACKAGES: dict[LoggerName, tuple[str, str]] = {
    # name -> (module that writes, what to install)
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
_UPLOAD_TIMEOUT_S = 60
"""How long the end of a run waits for uploads to Weights & Biases."""


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Checks that the packages of the loggers are installed.

    Raises:
        PackageError: with one line for each missing package.
    """
    missing = [
        (name, *_PACKAGES[name])
        for name in names
        if importlib.util.find_spec(_PACKAGES[name][0]) is None
    ]
    if missing:
        raise PackageError(
            "\n".join(
                f"loggers: {name} needs the package {module}, which is not installed. Leave {name} "
                f"out, or run: pip install {install}"
                for name, module, install in missing
            )
        )


def open_loggers(names: Iterable[LoggerName], study: str, storage: Storage) -> dict[str, RunLogger]:
    """Opens Ray's callbacks, ready for trials; returns them by name.

    Their files are stored under `storage.loggers`. The libraries' own environment variables decide
    where else they write: `MLFLOW_TRACKING_URI`, `WANDB_MODE`, `WANDB_PROJECT`.

    Raises:
        PackageError: if a logger cannot be set up, for example because its server does not answer
            or a key is missing.
    """
    opened: dict[str, RunLogger] = {}
    for name in dict.fromkeys(names):
        storage.loggers(study).mkdir(parents=True, exist_ok=True)
        try:
            opened[name] = _OPEN[name](study, storage.loggers(study))
            opened[name].setup()
        except Exception as error:
            raise PackageError(
                f"loggers: {name} cannot be set up: {error}. Fix this, or leave {name} out"
            ) from error
    return opened


def _tensorboard(_study: str, _folder: Path) -> RunLogger:
    from ray.tune.logger import TBXLoggerCallback

    return cast("RunLogger", TBXLoggerCallback())  # type: ignore[no-untyped-call]


def _wandb(study: str, folder: Path) -> RunLogger:
    from ray.air.integrations import wandb

    class Sender(wandb._WandbLoggingActor):
        # Ray 2.60 kills this process as soon as `run` returns, and with it wandb's own process,
        # which may not have written everything yet (ray #33129). Can go when Ray waits for it.
        def run(self) -> None:
            super().run()  # type: ignore[no-untyped-call]
            self._wandb.teardown()

    callback = wandb.WandbLoggerCallback(
        project=os.environ.get("WANDB_PROJECT", "kdr"),
        group=study,
        upload_timeout=_UPLOAD_TIMEOUT_S,
        dir=str(folder),
        # as an argument: on a cluster, the sending process does not inherit this one's environment
        mode=os.environ.get("WANDB_MODE"),
    )
    callback._logger_actor_cls = Sender
    return cast("RunLogger", callback)


def _mlflow(study: str, folder: Path) -> RunLogger:
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # one database for all studies, each an experiment in it: MLflow no longer takes a plain folder
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.parent / 'mlflow.db'}"
    return cast("RunLogger", MLflowLoggerCallback(tracking_uri=uri, experiment_name=study))


_OPEN: dict[LoggerName, Callable[[str, Path], RunLogger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
