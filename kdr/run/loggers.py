"""TensorBoard, Weights & Biases and MLflow, through Ray's own callbacks. No study needs them; the
log is what counts.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kdr.config.study import LoggerName
from kdr.errors import PackageError
from kdr.storage.layout import Storage

_PACKAGES: dict[LoggerName, tuple[str, str]] = {
    # name -> (module that writes, what to install)
    "tensorboard": ("tensorboardX", "tensorboardX"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
_UPLOAD_TIMEOUT_S = 60
"""How long the end of a run waits for what is still being sent to Weights & Biases."""


def check_loggers(names: Iterable[LoggerName]) -> None:
    """Refuses loggers whose package is missing.

    Raises:
        PackageError: naming each of them.
    """
    missing = [
        (name, *_PACKAGES[name])
        for name in names
        if importlib.util.find_spec(_PACKAGES[name][0]) is None
    ]
    if missing:
        raise PackageError(
            "\n".join(
                f"loggers: {name} needs the package {module}, got none. Leave it out, or: pip "
                f"install {install}"
                for name, module, install in missing
            )
        )


def open_loggers(names: Iterable[LoggerName], study: str, storage: Storage) -> dict[str, Any]:
    """Ray's callbacks by name, set up and ready to be told of trials. Their files lie under
    `storage.loggers`.

    The variables of the libraries' own say where else things go: `MLFLOW_TRACKING_URI`,
    `WANDB_MODE`, `WANDB_PROJECT`.

    Raises:
        PackageError: if one cannot be set up: its server does not answer, or no key is known.
    """
    opened: dict[str, Any] = {}
    for name in dict.fromkeys(names):
        storage.loggers(study).mkdir(parents=True, exist_ok=True)
        try:
            opened[name] = _OPEN[name](study, storage.loggers(study))
            opened[name].setup()
        except Exception as error:
            raise PackageError(
                f"loggers: {name} must be ready before a study begins, got: {error}. Or leave "
                "it out"
            ) from error
    return opened


def _tensorboard(_study: str, _folder: Path) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    return TBXLoggerCallback()  # type: ignore[no-untyped-call]


def _wandb(study: str, folder: Path) -> Any:
    from ray.air.integrations import wandb

    class Sender(wandb._WandbLoggingActor):
        def run(self) -> None:
            super().run()  # type: ignore[no-untyped-call]
            # Ray kills this process at once, and with it wandb's own that may not have written
            # everything yet
            self._wandb.teardown()

    callback = wandb.WandbLoggerCallback(
        project=os.environ.get("WANDB_PROJECT", "kdr"),
        group=study,
        upload_timeout=_UPLOAD_TIMEOUT_S,
        dir=str(folder),
        # the process that sends does not inherit it on a cluster
        mode=os.environ.get("WANDB_MODE"),
    )
    callback._logger_actor_cls = Sender
    return callback


def _mlflow(study: str, folder: Path) -> Any:
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # one database for all studies, each an experiment; mlflow takes no folder of files any more
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.parent / 'mlflow.db'}"
    return MLflowLoggerCallback(tracking_uri=uri, experiment_name=study)


_OPEN: dict[LoggerName, Callable[[str, Path], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
