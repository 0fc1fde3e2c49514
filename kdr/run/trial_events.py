"""What Tune's driver sees of the trials: it alone knows why one ended before its last epoch. Log
and observer are told here.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ray import tune

from kdr.config.faults import Faults
from kdr.config.study import Study
from kdr.errors import StorageError
from kdr.results.reader import read_log
from kdr.results.schema import Event, Role
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import CANCELLED
from kdr.run.attempt.logged_fit import LoggedTrial, num_attempts
from kdr.run.attempt.trial_actor import STORAGE, trial_from
from kdr.run.engine.watchdog import hang_of
from kdr.run.kept_weights import KeptWeights
from kdr.run.observer import Observer, TrialUpdate, ignore
from kdr.storage.layout import Storage

_OUT_OF_MEMORY = ("OutOfMemoryError", "low on memory")
"""What Ray writes of a process that was killed since its node had no memory left."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class TrialEvents(tune.Callback):
    """Writes the events that the trials' own processes cannot know, and keeps the observer up to
    date.

    Args:
        study: the study that runs.
        storage: where everything lies.
        observer: is told how each trial comes on.
        role: of the trials that are run.
        metric: the searched metric.
        names: key -> name of the trial for people.
        faults: how often a trial is started again whose process died, and when the study is given
            up.
        kept_weights: is told of each trial that ends; None keeps everything.
        on_report: is told of each trial that has ended an epoch or itself, by Tune's id, with the
            ids of those that run then.
        on_ended: is told the key of each trial that has ended.
        on_no_storage: is told when the storage cannot be written any more; `storage_problem` then
            says why.
        on_abort: is told once, when the study's first trials have all failed alike; `abort_reason`
            then says why.
    """

    def __init__(
        self,
        study: Study,
        storage: Storage,
        observer: Observer,
        *,
        role: Role,
        metric: str,
        names: Mapping[str, str],
        faults: Faults,
        kept_weights: KeptWeights | None = None,
        on_report: Callable[[str, Iterable[str]], None] = ignore,
        on_ended: Callable[[str], None] = ignore,
        on_no_storage: Callable[[], None] = ignore,
        on_abort: Callable[[], None] = ignore,
    ) -> None:
        self.num_run = self.num_failed = 0
        self.storage_problem: str | None = None
        self.abort_reason = ""
        """Why the study is given up, once it is."""
        self._study, self._storage, self._observer = study, storage, observer
        self._role, self._metric, self._names, self._faults = role, metric, names, faults
        self._kept_weights, self._on_report, self._on_ended = kept_weights, on_report, on_ended
        self._on_no_storage, self._on_hopeless = on_no_storage, on_abort
        self._failures: set[str] = set()
        self._log = LogWriter(storage, study.study)
        self._running: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks to restore an experiment, which a study never
        does.
        """
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has been given its actor."""
        self._running[trial.trial_id] = trial
        self._tell(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An evaluated epoch has ended."""
        if not result.get("done"):
            self._tell(trial, "running", result)
            self._on_report(trial.trial_id, self._running)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has reached its last epoch, has failed by itself, or was stopped early."""
        result = trial.last_result
        if result.get("failed") == STORAGE:
            self._no_storage(result["reason"])
            return
        self.num_run += 1
        if result.get("failed") == CANCELLED and self._role == "student":
            self._tell(trial, "cancelled")
        elif result.get("failed"):
            self._tell(trial, "failed")
            self._has_failed(result["failed"], result.get("reason", ""))
        elif result["epoch"] < trial_from(trial.config).config.training.epochs:
            self._write(
                trial, "stopped_early", reason=f"behind other trials at epoch {result['epoch']}"
            )
            self._tell(trial, "stopped_early")
        else:
            self._tell(trial, "completed")
        self._ended(trial)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial has died, and the trial is about to go on in another one."""
        how = "its process died"
        if (doing := hang_of(self._storage, trial.config["trial"]["key"])) is not None:
            how = self._hung
            self._write(
                trial,
                "interrupted",
                failure_kind="hang",
                reason=how,
                traceback=doing,
                **self._where(trial),
            )
        self._tell(trial, "running", reason=f"{how}; it goes on from its checkpoint")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The process of a trial has died more often than it is started again."""
        self.num_run += 1
        error = _error_of(trial)
        lines = error.splitlines()
        kind = "out_of_memory" if any(text in error for text in _OUT_OF_MEMORY) else "crash"
        reason = f"its process died {self._faults.retries + 1} times" + (
            f", the last time with: {lines[-1]}" if lines else ""
        )
        if (doing := hang_of(self._storage, trial.config["trial"]["key"])) is not None:
            kind = "hang"
            reason = f"{self._hung}, or its process died, {self._faults.retries + 1} times"
            error = doing
        self._write(
            trial,
            "failed",
            failure_kind=kind,
            reason=reason,
            traceback=error,
            **self._where(trial),
        )
        self._tell(trial, "failed", reason=reason)
        self._has_failed(kind, reason)
        self._ended(trial)

    def close(self) -> None:
        """Writes what was interrupted: everything that has begun and not ended when Tune
        returns.
        """
        # a trial may have ended after Tune stopped listening, or not have begun: its own process
        # writes both
        states = read_log(self._storage).states() if self._running else {}
        for trial in self._running.values():
            state = states.get(trial.config["trial"]["key"])
            if state is not None and state.state == "running":
                self._write(
                    trial, "interrupted", reason=self.abort_reason or "the study was interrupted"
                )
            if state is None or state.state != "completed":
                self._tell(trial, "interrupted")

    def _no_storage(self, reason: str) -> None:
        """The storage cannot be written: nothing that runs could keep its results, so the study
        ends; what is logged is kept.
        """
        self.storage_problem = self.storage_problem or reason
        self._on_no_storage()

    @property
    def _hung(self) -> str:
        return f"it hung: no batch for {self._faults.silence_s:g} s"

    def _where(self, trial: Any) -> dict[str, Any]:
        """Host and device of a trial's last attempt, as it has told them itself."""
        state = (
            read_log(self._storage, self._study.study).states().get(trial.config["trial"]["key"])
        )
        return {} if state is None else {"host": state.last.host, "device": state.last.device}

    def _has_failed(self, kind: str, reason: str) -> None:
        """Gives the study up when all of its first trials have failed for one reason; numbers in it
        make no other one.
        """
        self.num_failed += 1
        self._failures.add(f"{kind}: {_NUMBER.sub('#', reason)}")
        if (
            self._role == "student"
            and self.num_run == self.num_failed == self._faults.abort_after
            and len(self._failures) == 1
        ):
            self.abort_reason = (
                f"the first {self.num_run} trials all failed alike, the last one by "
                f"{reason or kind}"
            )
            self._on_hopeless()

    def _ended(self, trial: Any) -> None:
        self._running.pop(trial.trial_id, None)
        key = trial.config["trial"]["key"]
        try:
            if self._kept_weights is not None:
                self._kept_weights.add(key, (trial.last_result or {}).get(self._metric))
            self._on_ended(key)
        except StorageError as error:
            self._no_storage(str(error))
        self._on_report(trial.trial_id, self._running)

    def _write(self, trial: Any, event: Event, **columns: Any) -> None:
        if self.storage_problem is not None:
            return
        given, result = trial.config["trial"], trial.last_result or {}
        try:
            LoggedTrial(
                trial_from(trial.config),
                self._log,
                self._storage,
                role=self._role,
                parameters=given["parameters"],
                trials_known=given["trials_known"],
                attempt=num_attempts(self._storage, given["key"]) or 1,
                reached=result.get("reached", {}),
            ).event(event, **columns)
        except StorageError as error:  # Tune would count it as the trial's own
            self._no_storage(str(error))

    def _tell(
        self, trial: Any, state: str, result: dict[str, Any] | None = None, *, reason: str = ""
    ) -> None:
        result = result or trial.last_result or {}
        known = trial_from(trial.config)
        parameters = trial.config["trial"]["parameters"]
        value = result.get(self._metric)
        self._observer.update(
            TrialUpdate(
                name=self._role if self._role == "teacher" else self._names.get(known.key, ""),
                key=known.key,
                state=state,
                epoch=result.get("epoch", 0),
                epochs=known.config.training.epochs,
                value=None if value is None or math.isnan(value) else value,
                parameters=json.loads(parameters) if parameters else {},
                reason=reason or result.get("reason", ""),
            )
        )


def _error_of(trial: Any) -> str:
    """What Ray said of each death of a trial's process. (`Trial.get_error` looks where the file is
    copied to only later.)
    """
    path = Path(trial.error_file or "")
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
