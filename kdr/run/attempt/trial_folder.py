"""The count of attempts in a trial's folder, and leftovers that the next attempt must not use."""

from kdr.results.check import LogProblem, quarantine
from kdr.results.saved_weights import file_damage
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage


def num_attempts(storage: Storage, key: str) -> int:
    """Returns how many attempts a trial has had.

    Counted in the trial's folder, not in the log: Tune retries a trial whose process died before
    anyone reads the log again, and the attempt that died may not have written a row.
    """
    path = _attempts(storage, key)
    return int(path.read_text()) if path.exists() else 0


def next_attempt(storage: Storage, key: str) -> int:
    """Counts one more attempt at a trial, and returns its number."""
    attempt = num_attempts(storage, key) + 1
    with _attempts(storage, key).written_aside() as aside:
        aside.write_text(str(attempt))
    return attempt


def drop_excluded(storage: Storage, key: str) -> None:
    """Removes weights and checkpoint of an excluded trial, so that it trains from its first
    epoch.
    """
    mark = storage.restart_marker(key)
    if mark.exists():
        # the marker goes last: if this process is killed in between, the next one drops them again
        storage.forget_weights(key)
        mark.unlink()


def quarantine_damaged_checkpoint(storage: Storage, key: str) -> str | None:
    """Quarantines a damaged checkpoint and returns a note for the log; None if it is intact. The
    trial starts over and computes the same numbers again.
    """
    checkpoint = storage.trial(key) / "checkpoint.pt"
    damage = file_damage(checkpoint) if checkpoint.exists() else None
    if damage is None:
        return None
    [moved] = quarantine(storage, LogProblem("damaged", str(checkpoint), damage, (checkpoint,)))
    return f"started over: its checkpoint {damage}; it is now {moved}"


def _attempts(storage: Storage, key: str) -> StoredPath:
    return storage.trial(key) / "attempts"
