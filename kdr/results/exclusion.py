"""Excludes a trial's result, and includes it again: by appending events, never by removing rows."""

from kdr.errors import ConfigError
from kdr.results.reader import TrialState
from kdr.results.schema import Event, TrialEvent, later_than
from kdr.results.writer import LogWriter
from kdr.storage.layout import Storage


def exclude(storage: Storage, state: TrialState, reason: str) -> None:
    """Excludes the last attempt at a trial and all before it: the trial counts nowhere, and runs
    again from its first epoch.

    Raises:
        ConfigError: if it is already excluded, or has not started.
        StorageError: if the log cannot be written.
    """
    if state.state in ("excluded", "planned"):
        raise ConfigError(
            f"KEY: must be a trial that has started and is not excluded, got {state.key}, which "
            f"is {state.state}"
        )
    mark = storage.restart_marker(state.key)
    mark.parent.mkdir(parents=True, exist_ok=True)
    # The marker first: with an exclusion alone, the next attempt would resume from the excluded
    # checkpoint. A marker alone only costs a fresh start.
    mark.touch()
    _write(storage, state, "excluded", reason)


def include(storage: Storage, state: TrialState) -> None:
    """Undoes an exclusion, as long as the trial has not started again.

    Raises:
        ConfigError: if the trial is not excluded.
        StorageError: if the log cannot be written.
    """
    if state.state != "excluded":
        raise ConfigError(
            f"KEY: must be an excluded trial that has not been run again, got {state.key}, which "
            f"is {state.state}"
        )
    _write(storage, state, "included", None)
    storage.restart_marker(state.key).unlink(missing_ok=True)


def _write(storage: Storage, state: TrialState, event: Event, reason: str | None) -> None:
    last = state.last
    with LogWriter(storage, state.study) as log:
        log.event(
            TrialEvent(
                study=state.study,
                key=state.key,
                event=event,
                config=state.config,
                attempt=state.attempt,
                time=later_than(last.time),
                role=last.role,
                seed=last.seed,
                data_id=last.data_id,
                teacher_id=last.teacher_id,
                reason=reason,
            )
        )
