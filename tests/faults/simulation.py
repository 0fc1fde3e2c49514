"""A machine on which a study runs without Ray, without training and without waiting, and on which
anything may die at any moment.

Real are the planner, the searcher with its journal, the early stopping, the driver's callbacks, the
trial actor, `fit()` with its checkpoints, the log's writer, its compaction and its reader.
Simulated are Ray Tune's loop, the epochs of a trial, and time.

Every change of the disk is a moment at which a process may be killed: fsync, rename and removal ask
first. From then on nothing that the dead process still does, such as a `finally`, reaches the disk.
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
from kdr.run.search.searcher import StudySearcher
from kdr.run.study_run import Outcome, run_study
from kdr.storage.layout import Storage
from kdr.storage.local_path import _HOST, LocalPath
from kdr.training.checkpoint import Progress
from kdr.training.metrics import EpochMetrics, Evaluation


class DriverKilledError(BaseException):
    """The driver has been killed, and the trials with it. Nothing catches it but whoever stands for
    the operating system."""


class TrialKilledError(BaseException):
    """The process of a trial has been killed."""


@dataclass
class Machine:
    """Runs a study again and again, with its faults.

    Args:
        storage: a folder in memory.
        study: what is run.
        random: decides which of several running trials is next, and how much time passes.
    """

    storage: Storage
    study: Study
    random: Random
    now: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(days=1))
    kill_driver_at: int | None = None
    """Changes of the disk until the driver is killed."""
    kill_trial_at: int | None = None
    """The same of the trials' own changes, until the process is killed that makes one."""
    interrupt_at: int | None = None
    """Reports of trials until Ctrl-C."""
    clock_back_at: int | None = None
    """Changes of the disk until the clock is set back, by up to a day."""
    num_changes: int = 0
    """Changes of the disk so far."""
    num_deaths: int = 0
    """Stands for the ids of processes: those that write before a death are no more after it."""
    in_trial: bool = False
    """Whether what happens now happens in a trial's process."""
    death: type[BaseException] | None = None
    """What a killed process dies of, until whoever has started it notices."""

    def run(self) -> Outcome | None:
        """Runs the study's command once; None if its driver was killed."""
        self.in_trial, self.death = False, None
        try:
            with self._stands_for_ray():
                return run_study(self.study, storage=self.storage, observer=Unobserved())
        except DriverKilledError:
            self.num_deaths += 1
            return None
        finally:
            # a lock that its dead owner held: Optuna takes it over after half a minute
            Path(f"{self.storage.search(self.study.study)}.lock").unlink(missing_ok=True)

    def change(self) -> None:
        """The disk is about to be changed."""
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
        """The time, later at every look until it is set back."""
        self.now += timedelta(microseconds=1)
        return self.now

    @contextlib.contextmanager
    def _alone(self, storage: Storage, study: str, **_: Any) -> Iterator[str]:
        """There is no other machine: a driver that has died is followed at once, and what it has
        claimed counts no more."""
        storage.drivers(study).remove_orphans()
        yield f"driver-{self.num_deaths}"

    @contextlib.contextmanager
    def _stands_for_ray(self) -> Iterator[None]:
        def asked_first(change: Callable[..., Any]) -> Callable[..., Any]:
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
                "os.replace": asked_first(os.replace),
                "os.unlink": asked_first(os.unlink),
                "kdr.storage.local_path._writer": lambda: f"{_HOST}-{self.num_deaths}",
                "kdr.storage.local_path._is_alive": lambda process: process == self.num_deaths,
                "kdr.run.study_run.ray_session": no_ray,
                "kdr.run.study_run.sole_driver": self._alone,
                "kdr.run.study_run.nodes_of_ray": lambda: [{"CPU": 8}],
                "kdr.run.study_run.open_splits": lambda *_: None,
                "kdr.run.study_run._check_fits_here": lambda _: None,
                "kdr.run.sweep.remove_leftover_groups": lambda: None,
                "kdr.run.sweep.tune.Tuner": lambda *given, **settings: SimulatedTuner(
                    self, *given, **settings
                ),
                # nothing is held, and collecting garbage takes longest
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
"""Images that fit into the memory of the simulated machine."""


class Unobserved:
    """Watches a study and does nothing."""

    def phase(self, text: str) -> None: ...
    def finding(self, finding: Any) -> None: ...
    def plan(self, num_trials: int | None, num_done: int, num_concurrent: int) -> None: ...
    def update(self, progress: Any) -> None: ...


class OneThread(contextlib.AbstractContextManager["OneThread"]):
    """A pool of threads without threads: starting some would take longer than reading so small a
    log."""

    map = staticmethod(map)

    def __init__(self, max_workers: int) -> None: ...
    def __exit__(self, *_: Any) -> None: ...


@dataclass
class SimulatedTrial:
    """Tune's side of a trial, as far as callbacks look at it."""

    trial_id: str
    config: dict[str, Any]
    last_result: dict[str, Any] = field(default_factory=dict)
    num_failures: int = 0
    error_file: str | None = None


class SimulatedTuner:
    """Ray Tune's loop as kdr uses it, in the order in which `TuneController` of Ray 2.60 tells its
    parts of a trial."""

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
        # Tune takes SIGINT for itself, and keeps it
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
        if found is None or found == StudySearcher.FINISHED:
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
            self._tell("on_trial_start", trial)

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
            self._tell("on_trial_result", trial, result=result)
            trial.last_result = result
            if stops:
                self._of_scheduler("on_trial_complete", trial, result)
                if self.searcher is not None:
                    self.searcher.on_trial_complete(trial.trial_id, result=result)
                self._tell("on_trial_complete", trial)
                self.idle.append(self.actors.pop(trial.trial_id))

    @contextlib.contextmanager
    def _process_of(self, trial: SimulatedTrial) -> Iterator[None]:
        """What runs in a trial's process; if that is killed, the trial waits to go on, or has
        failed."""
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
                self._tell("on_trial_recover", trial)
            else:
                self._of_scheduler("on_trial_error", trial)
                if self.searcher is not None:
                    self.searcher.on_trial_complete(trial.trial_id, error=True)
                self._tell("on_trial_error", trial)
        finally:
            self.machine.in_trial = False

    def _of_scheduler(self, what: str, trial: SimulatedTrial, *arguments: Any) -> None:
        if self.scheduler is not None:
            getattr(self.scheduler, what)(None, trial, *arguments)

    def _tell(self, what: str, trial: SimulatedTrial, **told: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, what)(0, self.trials, trial, **told)


@dataclass
class Untrained:
    """A trial made ready to train that never trains."""

    micro_batch: int | None
    model = SimpleNamespace(student=None)

    def parts(self) -> dict[str, Any]:
        return {}

    def close(self) -> None: ...


def simulated_epoch(
    config: TrialConfig, state: Any, progress: Progress, *_: Any
) -> tuple[EpochMetrics, Progress]:
    """An epoch whose numbers depend on the trial and the epoch alone; in the second one some trials
    fail, or have no memory."""
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
    """Whether a trial is one of those that fail; teachers do not."""
    return config.needs_teacher and quality(config) < 0.2


def save_simulated_student(path: LocalPath, _detector: Any, *, extra: dict[str, Any]) -> None:
    """The two files of a student, one after the other."""
    for name in (path, path.with_suffix(".json")):
        with name.written_aside() as aside:
            aside.write_text(extra["trial"])
