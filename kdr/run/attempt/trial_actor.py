"""The Ray Tune trainable of a study: one actor trains one trial after another and keeps what they
share.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from ray import tune

from kdr.config.trial import Trial, TrialConfig
from kdr.errors import StorageError, TrialFailure
from kdr.results.reader import TrialState, read_log
from kdr.results.schema import METRICS, Role
from kdr.results.writer import FLUSH_EVERY_S, LogWriter
from kdr.run.attempt.logged_fit import LoggedTrial, num_attempts
from kdr.run.cluster.trial_resources import ResolvedResources
from kdr.run.engine.engine import Engine, InlineEngine, ProcessLostError
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics

STORAGE = "storage"
"""Kind under which a trial tells Tune that its files cannot be written. It has not failed: the
study ends, and can go on."""


@dataclass(frozen=True)
class ActorSettings:
    """What every trial of one study's actors shares."""

    storage: Storage
    study: str
    resources: ResolvedResources
    """Of one trial."""
    silence_s: float
    """Seconds without a batch after which a process of a trial ends itself."""
    role: Role = "student"
    """"teacher" for the actor that trains the study's teacher."""
    may_be_stopped: bool = False
    """Whether the driver stops trials early: each epoch may be the last, and must be in the log
    before the driver says so."""


def tune_config(
    trial: Trial,
    *,
    parameters: dict[str, Any] | None = None,
    trials_known: int | None = None,
    attempts_before: int = 0,
) -> dict[str, Any]:
    """One trial as plain values, for Tune's `config`; the actor reads it with `trial_from`.

    Args:
        trial: the trial.
        parameters: what the study chose for it, by path.
        trials_known: how many ended trials the sampler knew when it suggested this one.
        attempts_before: attempts at it in earlier runs; what a later one has ended is not to be
            done again.
    """
    return {
        "trial": {
            "key": trial.key,
            "config": trial.config.model_dump_json(),
            "data_id": trial.data_id,
            "teacher_id": trial.teacher_id,
            "parameters": None if parameters is None else json.dumps(parameters),
            "trials_known": trials_known,
            "attempts_before": attempts_before,
        }
    }


def trial_from(config: dict[str, Any]) -> Trial:
    """The trial that `tune_config` wrote."""
    given = config["trial"]
    return Trial(
        key=given["key"],
        config=TrialConfig.model_validate_json(given["config"]),
        data_id=given["data_id"],
        teacher_id=given["teacher_id"],
    )


class TrialActor(tune.Trainable):
    """Trains trials one after another, in this process or on a gang of workers; data set and
    teacher stay open between them.

    A trial that fails by itself (NaN, out of memory, bad data) ends as done, with `failed` in its
    result: the actor lives on. A process that dies, this one or one of the gang, is started again
    by Tune, and the trial goes on from its checkpoint.
    """

    # `tune.with_parameters` hands over the settings
    def setup(self, config: dict[str, Any], *, settings: ActorSettings) -> None:  # type: ignore[override]
        """Opens what trials share, in a process of its own."""
        self._settings = settings
        flush_every_s = 0.0 if settings.may_be_stopped else FLUSH_EVERY_S
        self._log = LogWriter(settings.storage, settings.study, flush_every_s=flush_every_s)
        self._engine = _engine(settings)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial. The one before has ended or was stopped; its checkpoint was written
        before its last report.
        """
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next evaluated epoch."""
        if self._over is not None:
            return _result_of(self._over)
        shown: list[dict[str, float]] = []
        try:
            for metrics in self._epochs:
                shown.append(_numbers(metrics))
                if metrics.evaluation is not None:
                    break
        except ProcessLostError:
            self._log.flush()
            raise
        except Exception as error:
            failure = (
                error.kind
                if isinstance(error, TrialFailure)
                else STORAGE
                if isinstance(error, StorageError)
                else "error"
            )
            return {
                **self._reached(),
                "shown": shown,
                "done": True,
                "failed": failure,
                "reason": str(error),
                **_no_metrics(),
            }
        assert metrics.evaluation is not None
        values = {name: metrics.evaluation.metrics.get(name, math.nan) for name in _no_metrics()}
        return {**self._reached(), "shown": shown, "done": metrics.is_last, **values}

    def cleanup(self) -> None:
        """The last thing that Tune calls: lets go of the trial and of the workers."""
        self._end()
        self._engine.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: checkpoints are the trial's own, under its key."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `fit()` continues from the trial's own checkpoint."""

    def _begin(self, config: dict[str, Any]) -> None:
        given = config["trial"]
        self._trial = LoggedTrial(
            trial_from(config),
            self._log,
            self._settings.storage,
            role=self._settings.role,
            parameters=given["parameters"],
            trials_known=given["trials_known"],
            num_gpus=self._settings.resources.num_gpus,
        )
        self._epochs: Any = self._trial.epochs(self._engine)
        self._over = self._ended_in_this_run(given["attempts_before"])
        if self._over is not None and self._over.state == "completed":
            self._settings.storage.forget_progress(given["key"])

    def _ended_in_this_run(self, attempts_before: int) -> TrialState | None:
        """The end of a trial whose process died after it had logged it, and before Tune heard of
        it.
        """
        storage, key = self._settings.storage, self._trial.trial.key
        if num_attempts(storage, key) <= attempts_before:
            return None
        state = read_log(storage, self._settings.study).states().get(key)
        ended = (
            state is not None
            and state.attempt > attempts_before
            and state.state in ("completed", "failed", "cancelled")
        )
        return state if ended else None

    def _end(self) -> None:
        """Lets go of the trial, and writes the rows that are still waiting."""
        self._epochs.close()
        self._log.flush()

    def _reached(self) -> dict[str, Any]:
        # under a name of its own, since Tune adds columns to a result
        return {
            "epoch": self._trial.reached.get("epoch", 0),
            "attempt": self._trial.attempt,
            "reached": dict(self._trial.reached),
        }


def _engine(settings: ActorSettings) -> Engine:
    resources = settings.resources
    if resources.workers == 1:
        import torch

        torch.set_num_threads(max(1, math.floor(resources.cpus_per_worker)))
        return InlineEngine(
            settings.storage, loader_workers=resources.loader_workers, silence_s=settings.silence_s
        )
    from kdr.run.engine.gang import Gang, GangSettings

    size = GangSettings(
        num_workers=resources.workers,
        cpus_per_worker=resources.cpus_per_worker,
        gpus_per_worker=resources.gpus_per_worker,
        loader_workers=resources.loader_workers,
        max_trials=resources.max_trials_per_start,
        silence_s=settings.silence_s,
    )
    return Gang(size, settings.storage, settings.study)


def _result_of(state: TrialState) -> dict[str, Any]:
    """What Tune is told of a trial whose end is in the log."""
    metrics = {name: math.nan if value is None else value for name, value in state.metrics.items()}
    reached = {
        "epoch": state.epoch,
        "attempt": state.attempt,
        "reached": {"epoch": state.epoch, **state.metrics},
    }
    if state.state == "completed":
        return {**reached, "shown": [], "done": True, **metrics}
    failure = {"failed": state.last.failure_kind or state.state, "reason": state.last.reason or ""}
    return {**reached, "shown": [], "done": True, **failure, **_no_metrics()}


def _no_metrics() -> dict[str, float]:
    return dict.fromkeys(METRICS, math.nan)


def _numbers(metrics: EpochMetrics) -> dict[str, float]:
    """What loggers show of an epoch, by name."""
    found = metrics.evaluation.metrics if metrics.evaluation else {}
    return {
        "epoch": metrics.epoch,
        **{name: found[name] for name in METRICS if name in found},
        **{f"losses/{name}": value for name, value in metrics.losses.items()},
        **{f"weighted_losses/{name}": value for name, value in metrics.weighted_losses.items()},
        "lr": metrics.lr,
        "images_per_s": metrics.images_per_s,
    }
