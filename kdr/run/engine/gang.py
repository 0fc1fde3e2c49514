"""A gang: workers that train trials together, in a TorchTrainer of Ray Train that stays warm.

Starting a TorchTrainer takes many seconds; handing its workers another trial takes milliseconds.
Its training function (`kdr.run.engine.worker`) therefore never returns: it waits for a trial,
trains it, and waits for the owner's answer after each epoch.

Ray 2.60: Train's controller dies with this process, and its workers with the controller. Their
placement group may stay, though, and hold their CPUs and GPUs: Ray's own cleaner needs the state
API of the dashboard, which a local Ray and a plain `ray start` without `ray[default]` lack (ray
#54305, #58515). So the gang removes the group itself, which also ends workers, controller and
`TorchTrainer.fit()` within a second. Can go when Ray removes groups of dead controllers without a
dashboard.
"""

import contextlib
import threading
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import ray
import ray.train
from ray._raylet import PlacementGroupID
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from kdr.config.trial import Trial
from kdr.run.engine.channel import Failed, GangChannel, Lost, Report, Stop, Up
from kdr.run.engine.engine import Epochs, ProcessLostError
from kdr.run.engine.worker import WorkerSettings, serve
from kdr.storage.layout import Storage
from kdr.training.metrics import EpochMetrics

_END_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class GangSettings:
    """The size of a gang, and when it is restarted."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    loader_workers: int
    """Processes that load images, for each worker."""
    max_trials: int
    """Trials after which the workers are restarted."""
    silence_s: float
    """Seconds without a batch after which a worker ends itself."""


class Gang:
    """An engine that trains each trial on several workers, which Ray Train places on one node if
    they fit there.

    The workers start with the first trial. They are restarted after a trial that failed in one of
    them alone, ran out of memory or lost a process, and after `max_trials`.

    Args:
        settings: size and restarts.
        storage: where checkpoints and weights go; every node must have access to it.
        study: name of the study; Ray's files go to its folder.
    """

    def __init__(self, settings: GangSettings, storage: Storage, study: str) -> None:
        self._settings, self._storage, self._study = settings, storage, study
        self._channel: GangChannel | None = None
        self._up: Up | None = None
        self._thread: threading.Thread | None = None
        self._num_trials = 0

    @property
    def where(self) -> Mapping[str, str]:
        """Host and device of rank 0."""
        return {} if self._up is None else self._up.where

    def fit(self, trial: Trial) -> Epochs:
        """Trains a trial; iterates and raises as `kdr.training.fit.fit` does.

        Raises:
            ProcessLostError: if a worker died; the trial can resume from its checkpoint.
        """
        if self._num_trials >= self._settings.max_trials:
            self.close()
        channel = self._channel or self._start()
        self._num_trials += 1
        channel.send(trial)
        while True:
            report = self._next_report(channel)
            if isinstance(report, Failed):
                if not report.by_all:
                    self.close()
                raise report.error
            assert isinstance(report, EpochMetrics), report
            try:
                yield report
            except GeneratorExit:
                # the caller stops the trial here; the workers still wait for an answer
                channel.send(Stop(True))
                raise
            channel.send(Stop(report.is_last))
            if report.is_last:
                # Here, and not in rank 0 as `fit()` does without a gang: nothing waits for rank 0,
                # and the study may end, and be checked, before a slow worker has removed its files.
                self._storage.forget_progress(trial.key)
                return

    def close(self) -> None:
        """Ends the workers and frees their CPUs and GPUs."""
        # The order matters: without its group the trainer ends, then its thread, which still
        # reports `Lost` to the channel.
        if self._up is not None:
            _remove(self._up.placement_group)
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)
        if self._channel is not None:
            self._channel.close()
        self._channel = self._up = self._thread = None

    def _start(self) -> GangChannel:
        self._num_trials = 0
        channel = self._channel = GangChannel.open(self._settings.num_workers)
        trainer = self._trainer(channel)
        self._thread = threading.Thread(
            target=_fit, args=(trainer, channel), name="gang", daemon=True
        )
        self._thread.start()
        up = self._next_report(channel)
        assert isinstance(up, Up), up
        self._up = up
        return channel

    def _trainer(self, channel: GangChannel) -> TorchTrainer:
        settings = self._settings
        worker = WorkerSettings(
            channel=channel,
            storage=self._storage,
            threads=max(1, int(settings.cpus_per_worker)),
            loader_workers=settings.loader_workers,
            silence_s=settings.silence_s,
        )
        gpus = {"GPU": settings.gpus_per_worker} if settings.gpus_per_worker else {}
        return TorchTrainer(
            serve,
            train_loop_config={"settings": worker},
            scaling_config=ray.train.ScalingConfig(
                num_workers=settings.num_workers,
                use_gpu=settings.gpus_per_worker > 0,
                resources_per_worker={"CPU": settings.cpus_per_worker, **gpus},
            ),
            run_config=ray.train.RunConfig(
                # a new name each time: a Train run of a known name resumes that run
                name=f"gang-{uuid.uuid4().hex[:12]}",
                storage_path=str(self._storage.ray / self._study),
            ),
        )

    def _next_report(self, channel: GangChannel) -> Report:
        try:
            report = channel.next_report()
        except RayError as error:
            # the process with the mailboxes died, for example together with its node
            report = Lost(f"{type(error).__name__}: {error}")
        if isinstance(report, Lost):
            self.close()
            raise ProcessLostError(report.reason)
        return report


def remove_leftover_groups() -> None:
    """Removes the placement groups that this job still holds; called when none of its trials runs.

    A gang that was killed while it waited for its group could not remove it: only its workers know
    the group's id. Ray removes it only where its dashboard runs (2.60).
    """
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if group["state"] != "REMOVED" and name.endswith(job):  # a group's id ends with its job's
            _remove(name)


def _fit(trainer: TorchTrainer, channel: GangChannel) -> None:
    """Runs the trainer in a thread, and reports when and why it ended."""
    try:
        trainer.fit()
        reason = "the workers ended"
    except BaseException as error:
        reason = (str(error).strip() or traceback.format_exc().strip()).splitlines()[-1]
    with contextlib.suppress(RayError):
        channel.report(Lost(reason))


def _remove(placement_group: str) -> None:
    remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(placement_group)))
