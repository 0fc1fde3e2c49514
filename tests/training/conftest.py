"""A tiny study on generated shapes, with a teacher trained for one epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial
from kdr.run.attempt.logged_fit import teacher_of
from kdr.run.trial_identity import trial_maker
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts

TINY: dict[str, Any] = {
    "study": "tiny",
    "trial": {
        "data": {"dataset": "shapes", "image_size_px": 64, "num_train": 16, "num_val": 6},
        "teacher": {
            "backbone": "resnet18",
            "fpn_channels": 32,
            "training": {"epochs": 1, "batch_size": 8, "optimizer": "adamw", "lr": 1e-3},
        },
        "student": {"backbone": "mobilenet_v3_small", "fpn_channels": 32},
        "distill": {"kdr": {}},
        "training": {
            "epochs": 2,
            "batch_size": 8,
            "optimizer": "adamw",
            "lr": 1e-3,
            "schedule": "one_cycle",
        },
    },
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return Storage.at(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="session")
def shared(storage: Storage) -> SharedParts:
    return SharedParts(storage)


@pytest.fixture(scope="session")
def tiny() -> Study:
    return study_from(TINY, folder=Path())


@pytest.fixture(scope="session")
def make(tiny: Study, storage: Storage, shared: SharedParts) -> Callable[..., Trial]:
    """Builds a trial of the tiny study with some settings changed, and trains its teacher."""

    def build(changes: dict[str, Any] | None = None) -> Trial:
        trial = trial_maker(tiny, storage)(tiny.trial_with(changes or {}))
        teacher = teacher_of(trial)
        if teacher is not None and not (storage.trial(teacher.key) / "student.pt").exists():
            list(fit(teacher, storage=storage, shared=shared))
        return trial

    return build


@pytest.fixture
def run(storage: Storage, shared: SharedParts, tmp_path: Path) -> Callable[..., list[EpochMetrics]]:
    """Runs a trial from scratch to its end, with the shared teacher."""

    def to_the_end(trial: Trial, **options: Any) -> list[EpochMetrics]:
        forget(storage, trial)
        return list(fit(trial, storage=storage, shared=options.pop("shared", shared), **options))

    return to_the_end


def forget(storage: Storage, trial: Trial) -> None:
    """Removes the files of earlier runs of a trial."""
    for name in ("checkpoint.pt", "student.pt", "student.json"):
        (storage.trial(trial.key) / name).unlink(missing_ok=True)
