"""The expected cost of trials, from logged trials of the same shape."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdr.config.canonical import canonical_json
from kdr.config.trial import TrialConfig
from kdr.results.reader import Log, TrialState

_SAME_COST = {
    "weights",
    "backbone_weights",
    "min_loaded_share",
    "training",
    "seed",
    "labels",
    "inherit",
}
"""Settings of a detector that do not change the time of a step."""


@dataclass(frozen=True)
class Cost:
    """The cost of some trials, run one after the other."""

    num_trials: int
    seconds: float
    gpu_hours: float
    """0 if trials hold no GPU, or the log does not say."""
    num_logged: int
    """Logged trials that the estimate is based on."""
    device: str | None
    """The device they ran on."""


def logged_cost(log: Log, configs: Sequence[TrialConfig], *, workers: int = 1) -> Cost | None:
    """Estimates the cost of trials from completed trials of the same shape.

    Trials have the same shape if they share student, data, teacher, methods, epochs, batch size,
    precision and workers; other settings may differ. If they ran on several devices, the latest one
    counts.

    Args:
        log: the trial log.
        configs: the trials that will run.
        workers: data-parallel processes of each trial.

    Returns:
        None if any trial has a shape that no completed trial has.
    """
    logged = _by_shape(log)
    seconds, gpu_hours, basis = 0.0, 0.0, []
    for config in configs:
        found = logged.get(_shape(config.model_dump(mode="json"), workers), [])
        if not found:
            return None
        one = statistics.fmean(state.seconds or 0.0 for state in found)
        seconds += one
        # sorted by time: the latest trial decides how many GPUs a trial holds
        gpu_hours += one / 3600 * (found[-1].last.num_gpus or 0.0)
        basis += found
    keys = {state.key for state in basis}
    return Cost(
        len(configs), seconds, gpu_hours, len(keys), basis[-1].last.device if basis else None
    )


def _by_shape(log: Log) -> dict[str, list[TrialState]]:
    """Returns completed students by shape, from the device that ran the latest of each."""
    workers = _workers(log)
    shapes: dict[str, list[TrialState]] = {}
    for state in sorted(log.states().values(), key=lambda state: state.last.time):
        if state.state == "completed" and state.role == "student" and state.seconds is not None:
            shapes.setdefault(
                _shape(json.loads(state.config), workers.get(state.key, 1)), []
            ).append(state)
    return {
        # times from another device would mislead, so only the latest device counts
        shape: [one for one in found if one.last.device == found[-1].last.device]
        for shape, found in shapes.items()
    }


def _workers(log: Log) -> dict[str, int]:
    """Returns the data-parallel processes of each trial, from the studies that ran it."""
    # one study file is repeated in thousands of rows: each text is parsed once
    configs = {
        text: json.loads(text).get("resources") or {}
        for text in _texts(log.arms["study_config"].to_pylist())
    }
    rows = log.arms.select(["key", "study_config"]).to_pylist()
    return {
        row["key"]: configs[row["study_config"]].get("workers", 1)
        for row in rows
        if row["study_config"]
    }


def _texts(values: Iterable[str | None]) -> set[str]:
    return {value for value in values if value}


def _shape(settings: Mapping[str, Any], workers: int) -> str:
    data, training = settings["data"], settings["training"]
    methods = sorted(name for name, method in settings["distill"].items() if method is not None)
    # an unused teacher costs nothing, whatever the file says
    needs_teacher = bool(methods or settings["student"].get("inherit"))
    return canonical_json(
        {
            "student": _detector(settings["student"]),
            "teacher": _detector(settings["teacher"] or {}) if needs_teacher else None,
            "methods": methods,
            "data": {
                name: value for name, value in data.items() if name not in ("augment", "seed")
            },
            "training": [
                training.get(name)
                for name in (
                    "epochs",
                    "batch_size",
                    "micro_batch",
                    "precision",
                    "channels_last",
                    "eval_every_epochs",
                )
            ],
            "workers": workers,
        }
    )


def _detector(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in settings.items()
        if name not in _SAME_COST and value is not None
    }
