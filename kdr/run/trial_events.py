"""Tune's callbacks about its trials: writes them to the log and updates the observer.

A trial's own process logs most of its events. Only the driver knows why a trial ended before its
last epoch: the scheduler stopped it, the study was interrupted, or its process died.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Unpack

from ray import tune

from kdr.config.study import Study
from kdr.errors import StorageError
from kdr.results.reader import read_log
from kdr.results.schema import Event, Role
from kdr.results.writer import LogWriter
from kdr.run.attempt.cancellation import CANCELLED
from kdr.run.attempt.logged_fit import EventColumns, LoggedTrial, WhereColumns
from kdr.run.attempt.trial_folder import num_attempts
from kdr.run.engine.watchdog import hang_of
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.observer import Observer, TrialUpdate, ignore
from kdr.run.trial_report import STORAGE, Reached, TrialReport, ends_trial
from kdr.run.tune_protocols import TuneTrial
from kdr.storage.layout import Storage

_OUT_OF_MEMORY = ("OutOfMemoryError", "low on memory")
"""Parts of Ray's message about a process that it killed because its node was out of memory."""
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Stopper(Protocol):
    """Ends the running trials (`kdr.run.driver.interruption.Interruption`)."""

    def trial_reported(self, trial_id: str, running: Iterable[str]) -> None:
        """Records that a trial finished an epoch or ended; `running` are the trials running now."""

    def end_now(self) -> None:
        """Ends the running trials at once, as Ctrl-C does."""


class TrialEvents(tune.Callback):
    """Writes the events that the trials' own processes cannot know, and updates the observer.

    Args:
        study: the study that runs.
        storage: the storage with its log.
        observer: receives an update whenever a trial makes progress or changes its state.
        role: role of the trials.
        names: key -> display name of the trial; may grow while the trials run.
        stopper: ends the trials if the storage fails (`storage_problem` then has the reason), and
            if the study is aborted (`abort_reason`).
        on_ended: receives key and searched metric of each trial that ended; None without a result.
    """

    def __init__(
        self,
        study: Study,
        storage: Storage,
        observer: Observer,
        *,
        role: Role,
        names: Mapping[str, str],
        stopper: Stopper,
        on_ended: Callable[[str, float | None], None] = ignore,
    ) -> None:
        self.num_run = self.num_failed = 0
        self.storage_problem: str | None = None
        self.abort_reason = ""
        """Why the study was aborted; empty if it was not."""
        self._study, self._storage, self._observer = study, storage, observer
        self._role, self._names, self._faults = role, names, study.faults
        self._stopper, self._on_ended = stopper, on_ended
        self._failures: set[str] = set()
        self._log = LogWriter(storage, study.study)
        self._running: dict[str, TuneTrial] = {}

    def __getstate__(self) -> dict[str, object]:
        """Returns nothing: Tune pickles callbacks to restore experiments, which kdr never does."""
        return {}

    def on_trial_start(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Records that a trial got its actor."""
        self._running[trial.trial_id] = trial
        self._update(trial, "running", _last_report(trial))

    def on_trial_result(
        self,
        iteration: int,
        trials: Sequence[TuneTrial],
        trial: TuneTrial,
        result: Mapping[str, object],
        **info: object,
    ) -> None:
        """Reports an evaluated epoch, unless the trial ends with it: then `on_trial_complete`
        follows.
        """
        if not ends_trial(result):
            self._update(trial, "running", TrialReport.of_result(result))
            self._stopper.trial_reported(trial.trial_id, self._running)

    def on_trial_complete(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Records the end of a trial that completed, failed by itself, or was stopped early."""
        report = _last_report(trial)
        assert report is not None, "a trial completes with a report"
        if report.failure_kind == STORAGE:
            self._storage_failed(report.reason)
            return
        self.num_run += 1
        # a cancelled teacher counts as failed: without it, no student can train
        if report.failure_kind == CANCELLED and self._role == "student":
            self._update(trial, "cancelled", report)
        elif report.failure_kind is not None:
            self._update(trial, "failed", report)
            self._count_failure(report.failure_kind, report.reason)
        elif report.epoch < LaunchedTrial.of_config(trial.config).trial.config.training.epochs:
            reason = f"behind other trials at epoch {report.epoch}"
            self._write(trial, "stopped_early", reason=reason)
            self._update(trial, "stopped_early", report)
        else:
            self._update(trial, "completed", report)
        self._ended(trial, report)

    def on_trial_recover(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Reports that Tune restarts a trial whose process died; logs a hang."""
        reason = "its process died"
        stacks = hang_of(self._storage, _key_of(trial))
        if stacks is not None:
            reason = self._hung
            self._write(
                trial,
                "interrupted",
                failure_kind="hang",
                reason=reason,
                traceback=stacks,
                **self._where(trial),
            )
        self._update(
            trial, "running", _last_report(trial), reason=f"{reason}; resumes from its checkpoint"
        )

    def on_trial_error(
        self, iteration: int, trials: Sequence[TuneTrial], trial: TuneTrial, **info: object
    ) -> None:
        """Logs the failure of a trial whose process died with no retries left."""
        self.num_run += 1
        kind, reason, details = self._cause_of_death(trial)
        self._write(
            trial,
            "failed",
            failure_kind=kind,
            reason=reason,
            traceback=details,
            **self._where(trial),
        )
        self._update(trial, "failed", _last_report(trial), reason=reason)
        self._count_failure(kind, reason)
        self._ended(trial, _last_report(trial))

    def close(self) -> None:
        """Logs that the running trials were interrupted; called when Tune has returned."""
        # The log decides: a trial may have completed after Tune stopped listening, or not have
        # started yet. Its own process writes both.
        states = read_log(self._storage).states() if self._running else {}
        for trial in self._running.values():
            state = states.get(_key_of(trial))
            if state is not None and state.state == "running":
                reason = self.abort_reason or "the study was interrupted"
                self._write(trial, "interrupted", reason=reason)
            if state is None or state.state != "completed":
                self._update(trial, "interrupted", _last_report(trial))

    def _storage_failed(self, reason: str) -> None:
        """Ends the study, because no running trial could save its results. Everything logged is
        kept, and the same command resumes the study.
        """
        self.storage_problem = self.storage_problem or reason
        self._stopper.end_now()

    @property
    def _hung(self) -> str:
        return f"it hung: no batch for {self._faults.silence_s:g} s"

    def _cause_of_death(self, trial: TuneTrial) -> tuple[str, str, str]:
        """Returns failure kind, reason and traceback of a trial that lost its last process."""
        num_deaths = self._faults.retries + 1
        if (stacks := hang_of(self._storage, _key_of(trial))) is not None:
            return "hang", f"{self._hung}, or its process died, {num_deaths} times", stacks
        error = _error_of(trial)
        kind = "out_of_memory" if any(text in error for text in _OUT_OF_MEMORY) else "crash"
        last_line = error.splitlines()[-1] if error else ""
        last_time = f", the last time with: {last_line}" if last_line else ""
        return kind, f"its process died {num_deaths} times{last_time}", error

    def _where(self, trial: TuneTrial) -> WhereColumns:
        """Returns host and device of a trial's last attempt, as its own process logged them."""
        state = read_log(self._storage, self._study.study).states().get(_key_of(trial))
        return {} if state is None else {"host": state.last.host, "device": state.last.device}

    def _count_failure(self, kind: str, reason: str) -> None:
        """Aborts the study if its first trials all failed for the same reason.

        Reasons that differ in numbers only ("image 12", "image 7") are the same. As soon as one
        trial ends otherwise, `num_run` is ahead of `num_failed` for good.
        """
        self.num_failed += 1
        self._failures.add(f"{kind}: {_NUMBER.sub('#', reason)}")
        if (
            self._role == "student"
            and self.num_run == self.num_failed == self._faults.abort_after
            and len(self._failures) == 1
        ):
            self.abort_reason = (
                f"the first {self.num_run} trials all failed for the same reason, the last one "
                f"with: {reason or kind}"
            )
            self._stopper.end_now()

    def _ended(self, trial: TuneTrial, report: TrialReport | None) -> None:
        # before the callbacks: `trial_reported` compares with the trials that still run
        self._running.pop(trial.trial_id, None)
        try:
            self._on_ended(_key_of(trial), report.value(self._study.metric) if report else None)
        except StorageError as error:
            self._storage_failed(str(error))
        self._stopper.trial_reported(trial.trial_id, self._running)

    def _write(self, trial: TuneTrial, event: Event, **columns: Unpack[EventColumns]) -> None:
        if self.storage_problem is not None:
            return
        launched, report = LaunchedTrial.of_config(trial.config), _last_report(trial)
        try:
            LoggedTrial(
                launched.trial,
                self._log,
                self._storage,
                role=self._role,
                parameters=launched.parameters,
                trials_known=launched.trials_known,
                # not the report's: the last attempt may have died before it reported anything
                attempt=num_attempts(self._storage, launched.key) or 1,
                reached=report.reached if report else Reached(),
            ).event(event, **columns)
        except StorageError as error:  # raised from a callback, it would end Tune with a traceback
            self._storage_failed(str(error))

    def _update(
        self, trial: TuneTrial, state: str, report: TrialReport | None, *, reason: str = ""
    ) -> None:
        launched = LaunchedTrial.of_config(trial.config)
        self._observer.update(
            TrialUpdate(
                name=self._names.get(launched.key, ""),
                key=launched.key,
                state=state,
                epoch=report.epoch if report else 0,
                epochs=launched.trial.config.training.epochs,
                value=report.value(self._study.metric) if report else None,
                parameters=launched.point,
                reason=reason or (report.reason if report else ""),
            )
        )


def _key_of(trial: TuneTrial) -> str:
    return LaunchedTrial.of_config(trial.config).key


def _last_report(trial: TuneTrial) -> TrialReport | None:
    return TrialReport.of_result(trial.last_result)


def _error_of(trial: TuneTrial) -> str:
    """Returns Ray's report on the deaths of a trial's processes.

    `Trial.get_error` would return None here: it reads a copy that Ray 2.60 makes later.
    """
    path = Path(trial.error_file or "")
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
