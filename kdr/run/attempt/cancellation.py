"""The request to end one running trial: a file in the trial's folder, which its process looks for
after each epoch.
"""

from kdr.storage.layout import Storage
from kdr.storage.patience import patiently

CANCELLED = "cancelled"
"""Kind of the `TrialFailure` with which a cancelled trial ends."""


def ask_to_end(storage: Storage, key: str, reason: str) -> None:
    """Asks the process that runs a trial, on whatever machine, to end it after its present
    epoch.
    """
    with storage.cancellation(key).written_aside() as aside:
        aside.write_text(reason, encoding="utf-8")


def asked_to_end(storage: Storage, key: str) -> str | None:
    """Why a running trial is to end now, if someone has asked for it."""
    try:
        return patiently(lambda: storage.cancellation(key).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
