"""The request to cancel one running trial: a file in its folder, read after each epoch."""

from kdr.storage.layout import Storage
from kdr.storage.patience import patiently

CANCELLED = "cancelled"
"""Kind of the `TrialFailure` with which a cancelled trial ends."""


def request_cancel(storage: Storage, key: str, reason: str) -> None:
    """Asks the process that runs a trial, on any machine, to end it after its current epoch."""
    with storage.cancellation(key).written_aside() as aside:
        aside.write_text(reason, encoding="utf-8")


def cancel_reason(storage: Storage, key: str) -> str | None:
    """Returns why a trial was asked to end; None if it was not."""
    try:
        return patiently(lambda: storage.cancellation(key).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
