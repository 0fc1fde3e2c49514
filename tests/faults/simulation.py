"""A machine that runs studies without Ray, training or waiting, and can kill any process at any
moment.

The planner, the searcher with its journal, early stopping, the driver's callbacks, the trial actor,
`fit()` with its checkpoints, and the log's writer, compaction and reader are real. Ray Tune's loop,
the epochs of a trial, and time are simulated.

A process can be killed at each change of the disk: before each fsync, rename and removal. After its
death nothing that it still executes, such as a `finally`, changes the disk.
"""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from kdr.config.study import Study
from kdr.config.trial import TrialConfig
from kdr.errors import OutOfMemory, TrialFailure
from kdr.randomness import address
from kdr.run.study_run import Outcome, run_study
from kdr.storage.layout import Storage
from kdr.storage.local_path import _HOST, LocalPath
from kdr.training.checkpoint import Progress
from kdr.training.metrics import EpochMetrics, Evaluation

NUM_SCHEDULES = int(os.environ.get("KDR_FAULT_SCHEDULES", "50"))
"""Schedules of faults for each simulated study and test. A long run with more of them finds rarer
bugs (docs/faults.md)."""


class DriverKilledError(BaseException):
    """The driver was killed, and its trials with it. Caught only where the test stands in for the
    operating system."""


class TrialKilledError(BaseException):
    """The process of a trial was killed."""


@dataclass
class Machine:
    """Runs a study repeatedly, with faults.

    Args:
        storage: a folder in memory.
        study: the study.
        random: decides which of several running trials reports next, and how much time passes.
    """

    storage: Storage
    study: Study
    random: Random
    now: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(days=1))
    kill_driver_at: int | None = None
    """Changes of the disk until the driver is killed."""
    kill_trial_at: int | None = None
    """The same for changes made by trials, until the process that makes one is killed."""
    interrupt_at: int | None = None
    """Reports of trials until Ctrl-C."""
    clock_back_at: int | None = None
    """Changes of the disk until the clock is set back, by up to a day."""
    num_changes: int = 0
    """Changes of the disk so far."""
    num_deaths: int = 0
    """Stands in for pids: processes that wrote before a death no longer exist after it."""
    in_trial: bool = False
    """Whether a trial's process is executing."""
    death: type[BaseException] | None = None
    """The exception of a killed process, until its parent notices the death."""

    def run(self) -> Outcome | None:
        """Runs the study's command once; None if its driver was killed."""
        self.in_trial, self.death = False, None
        try:
            with self._without_ray():
                return run_study(self.study, storage=self.storage, observer=Unobserved())
        except DriverKilledError:
            self.num_deaths += 1
            return None
        finally:
            # a lock of a dead owner: Optuna itself would take it over after half a minute
            Path(f"{self.storage.search(self.study.study)}.lock").unlink(missing_ok=True)

    def change(self) -> None:
        """Called before every change of the disk."""
        self.num_changes += 1
        self.now += timedelta(microseconds=self.random.randrange(1, 2_000_000))
        if self.clock_back_at is not None:
            self.clock_back_at -= 1
            if self.clock_back_at < 0:
                self.clock_back_at = None
                self.now -= timedelta(seconds=self.random.randrange(1, 86_400))
        if self.death is None and self.kill_driver_at is not None:
            self.kill_driver_at -= 1
            if self.kill_driver_at < 0:
                self.kill_driver_at, self.death = None, DriverKilledError
        if self.death is None and self.kill_trial_at is not None and self.in_trial:
            self.kill_trial_at -= 1
            if self.kill_trial_at < 0:
                self.kill_trial_at, self.death = None, TrialKilledError
        if self.death is not None:
            raise self.death

    def clock(self) -> datetime:
        """The time, which advances with every call until it is set back."""
        self.now += timedelta(microseconds=1)
        return self.now

    @contextlib.contextmanager
    def _alone(self, storage: Storage, study: str, **_: Any) -> Iterator[str]:
        """Stands in for `sole_driver`: there is no other machine, so a dead driver is replaced at
        once, and its claims are void."""
        storage.drivers(study).remove_orphans()
        yield f"driver-{self.num_deaths}"

    @contextlib.contextmanager
    def _without_ray(self) -> Iterator[None]:
        def counted(change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*arguments: Any, **named: Any) -> Any:
                self.change()
                return change(*arguments, **named)

            return changed

        @contextlib.contextmanager
        def no_ray(*_: Any, **__: Any) -> Iterator[None]:
            yield

        with contextlib.ExitStack() as stack:
            for target, stand_in in {
                "os.fsync": lambda _file: self.change(),
                "os.replace": counted(os.replace),
                "os.unlink": counted(os.unlink),
                "kdr.storage.local_path._writer": lambda: f"{_HOST}-{self.num_deaths}",
                "kdr.storage.local_path._is_alive": lambda process: process == self.num_deaths,
                "kdr.run.study_run.ray_session": no_ray,
                "kdr.run.study_run.sole_driver": self._alone,
                "kdr.run.study_on_ray.nodes_of_ray": lambda: [{"CPU": 8}],
                "kdr.run.study_run.open_splits": lambda *_: None,
                "kdr.run.study_run._check_fits_here": lambda _: None,
                "kdr.run.tune_run.remove_leftover_groups": lambda: None,
                "kdr.run.tune_run.tune.Tuner": lambda *given, **settings: SimulatedTuner(
                    self, *given, **settings
                ),
                # there is nothing to release, and collecting garbage would take the most time
                "kdr.run.attempt.logged_fit.release_memory": lambda: None,
                "kdr.training.fit.prepare": lambda *given: Untrained(micro_batch=given[-1]),
                "kdr.training.fit.calibrate": lambda *_: None,
                "kdr.training.fit._run_epoch": simulated_epoch,
                "kdr.training.fit.save_student": save_simulated_student,
                "kdr.results.reader.ThreadPoolExecutor": OneThread,
                "kdr.results.schema.datetime": SimpleNamespace(now=lambda _zone: self.clock()),
                "kdr.results.writer.time": SimpleNamespace(
                    monotonic=lambda: self.clock().timestamp()
                ),
            }.items():
                stack.enter_context(patch(target, stand_in))
            yield


MOST_IMAGES = 4
"""Number of images that fit into the memory of the simulated machine."""


class Unobserved:
    """An observer that does nothing."""

    def phase(self, text: str) -> None: ...
    def finding(self, finding: Any) -> None: ...
    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None: ...
    def update(self, progress: Any) -> None: ...


class OneThread(contextlib.AbstractContextManager["OneThread"]):
    """A thread pool without threads: starting them would take longer than reading a small log."""

    map = staticmethod(map)

    def __init__(self, max_workers: int) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


@dataclass
class SimulatedTrial:
    """Tune's trial object, as far as callbacks use it."""

    trial_id: str
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)
    num_failures: int = 0
    error_file: str | None = None


class SimulatedTuner:
    """Ray Tune's loop as kdr uses it, with callbacks in the order of Ray 2.60's TuneController."""

    def __init__(
        self,
        machine: Machine,
        trainable: Any,
        *,
        param_space: Any,
        tune_config: Any,
        run_config: Any,
    ) -> None:
        self.machine, self.trainable = machine, trainable
        self.searcher, self.scheduler = tune_config.search_alg, tune_config.scheduler
        self.num_concurrent = tune_config.max_concurrent_trials
        self.max_failures = run_config.failure_config.max_failures
        self.callbacks = run_config.callbacks
        self.listed = iter(param_space["trial"]["grid_search"] if param_space else ())
        self.waiting: list[SimulatedTrial] = []
        self.actors: dict[str, Any] = {}
        self.idle: list[Any] = []
        self.trials: list[SimulatedTrial] = []
        self.finished = False

    def fit(self) -> None:
        # like Tune, which installs its own SIGINT handler and leaves it there
        before = signal.signal(signal.SIGINT, lambda *_: None)
        while (trial := self._next_report()) is not None:
            if self.machine.interrupt_at is not None:
                self.machine.interrupt_at -= 1
                if self.machine.interrupt_at < 0:
                    self.machine.interrupt_at = None
                    signal.signal(signal.SIGINT, before)
                    break
            self._step(trial)
        for actor in (*self.actors.values(), *self.idle):
            actor.cleanup()

    def _next_report(self) -> SimulatedTrial | None:
        while len(self.actors) < self.num_concurrent and (trial := self._next_trial()) is not None:
            self._start(trial)
        running = [trial for trial in self.trials if trial.trial_id in self.actors]
        return self.machine.random.choice(running) if running else None

    def _next_trial(self) -> SimulatedTrial | None:
        if self.waiting:
            return self.waiting.pop(0)
        if self.searcher is None:
            config = next(self.listed, None)
            found = None if config is None else {"trial": config}
        else:
            found = None if self.finished else self.searcher.suggest(f"tune-{len(self.trials)}")
        if found is None or isinstance(found, str):  # StudySearcher.FINISHED
            self.finished = True
            return None
        trial = SimulatedTrial(f"tune-{len(self.trials)}", found)
        self.trials.append(trial)
        self._of_scheduler("on_trial_add", trial)
        return trial

    def _start(self, trial: SimulatedTrial) -> None:
        actor = self.idle.pop() if self.idle else None
        with self._process_of(trial):
            if actor is None:
                self.actors[trial.trial_id] = self.trainable(dict(trial.config))
            else:
                assert actor.reset_config(dict(trial.config))
                self.actors[trial.trial_id] = actor
            self._notify("on_trial_start", trial)

    def _step(self, trial: SimulatedTrial) -> None:
        with self._process_of(trial):
            result = self.actors[trial.trial_id].step()
            stops = result["done"]
            if not stops and self.scheduler is not None:
                stops = self.scheduler.on_trial_result(None, trial, result) == "STOP"
            if stops:
                result["done"] = True
            elif self.searcher is not None:
                self.searcher.on_trial_result(trial.trial_id, result)
            self.machine.in_trial = False
            self._notify("on_trial_result", trial, result=result)
            trial.last_result = result
            if stops:
                self._of_scheduler("on_trial_complete", trial, result)
                if self.searcher is not None:
                    self.searcher.on_trial_complete(trial.trial_id, result=result)
                self._notify("on_trial_complete", trial)
                self.idle.append(self.actors.pop(trial.trial_id))

    @contextlib.contextmanager
    def _process_of(self, trial: SimulatedTrial) -> Iterator[None]:
        """Code that runs in a trial's process; if that is killed, the trial is queued to resume, or
        has failed."""
        self.machine.in_trial = True
        try:
            yield
        except TrialKilledError:
            self.machine.death, self.machine.in_trial = None, False
            self.machine.num_deaths += 1
            self.actors.pop(trial.trial_id, None)
            trial.num_failures += 1
            if trial.num_failures <= self.max_failures:
                self._of_scheduler("on_trial_error", trial)
                self.waiting.append(trial)
                self._of_scheduler("on_trial_add", trial)
                self._notify("on_trial_recover", trial)
            else:
                self._of_scheduler("on_trial_error", trial)
                if self.searcher is not None:
                    self.searcher.on_trial_complete(trial.trial_id, error=True)
                self._notify("on_trial_error", trial)
        finally:
            self.machine.in_trial = False

    def _of_scheduler(self, what: str, trial: SimulatedTrial, *arguments: Any) -> None:
        if self.scheduler is not None:
            getattr(self.scheduler, what)(None, trial, *arguments)

    def _notify(self, what: str, trial: SimulatedTrial, **more: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(0, self.trials, trial, **more)


@dataclass
class Untrained:
    """A prepared trial that never trains."""

    micro_batch: int | None
    model = SimpleNamespace(student=None)

    def parts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def simulated_epoch(
    config: TrialConfig, state: Any, progress: Progress, *_: Any
) -> tuple[EpochMetrics, Progress]:
    """An epoch whose numbers depend only on the trial and the epoch; in the second one some trials
    fail, or run out of memory."""
    epoch, name = progress.epoch + 1, config.model_dump_json()
    draw = Random(address(0, name, epoch))
    if fails(config) and epoch == 2:
        raise TrialFailure("non_finite_loss", "kdr is NaN or infinite in epoch 2, by step 7")
    if epoch == 2 and config.training.micro_batch == "auto" and state.micro_batch > MOST_IMAGES:
        raise OutOfMemory("can't allocate memory", state.micro_batch)
    AP = quality(config) * epoch / config.training.epochs
    metrics = EpochMetrics(
        epoch=epoch,
        step=epoch * 10,
        losses={"kdr": draw.random()},
        weighted_losses={"kdr": draw.random()},
        gradient_norms={},
        lr=0.1,
        seconds=10.0,
        eval_seconds=1.0,
        images_per_s=16.0,
        images_seen=epoch * 160,
        peak_memory_bytes=None,
        first_batch_hash=f"{draw.random()}",
        evaluation=Evaluation({"AP": AP, "AP50": AP * draw.random()}, {}),
        is_last=epoch == config.training.epochs,
    )
    return metrics, Progress(epoch, metrics.step, metrics.images_seen, (*progress.history, metrics))


def quality(config: TrialConfig) -> float:
    """AP of a trial at its last epoch."""
    return Random(address(1, config.model_dump_json())).random()


def fails(config: TrialConfig) -> bool:
    """Whether a trial is meant to fail; teachers never fail."""
    return config.needs_teacher and quality(config) < 0.2


def save_simulated_student(path: LocalPath, _detector: Any, *, extra: dict[str, Any]) -> None:
    """Writes the two files of a student, one after the other."""
    for name in (path, path.with_suffix(".json")):
        with name.written_aside() as aside:
            aside.write_text(extra["trial"])
