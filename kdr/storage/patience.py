"""Retries while a storage is unreachable: a file server that restarts, a network outage."""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_say = logging.getLogger(__name__).warning

PATIENCE_S = 300.0
"""How long a run retries."""
BRIEF_S = 10.0
"""How long a command retries while a user waits for it: when it reads, or when a run starts."""
_PAUSES_S = (1.0, 15.0)
"""First and longest pause between two tries; pauses double in between."""
# Left out on purpose are ENOSPC, EROFS and EACCES: waiting does not help against a full disk or a
# missing permission, and a run should fail while someone is still watching.
_PASSES = {
    errno.EAGAIN,
    errno.EINTR,
    errno.EIO,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENETRESET,
    errno.ENOTCONN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EPIPE,
}
"""Errors of a file server or network that may be gone a minute later. EIO and ESTALE are what NFS
clients report while their server restarts."""


def patiently(do: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """Returns the result of `do`; retries while its storage is unreachable, and logs the first
    failure and the recovery.

    Args:
        do: what to do; must be safe to repeat.
        patience_s: how long to retry before the error is raised.

    Raises:
        OSError: as `do` raised it; at once if waiting does not help.
    """
    begin, pause_s = time.monotonic(), _PAUSES_S[0]
    while True:
        try:
            result = do()
        except OSError as error:
            left_s = begin + patience_s - time.monotonic()
            if error.errno not in _PASSES or left_s <= 0:
                raise
            # the pause still has its first value exactly once: one line per outage, not per try
            if pause_s == _PAUSES_S[0]:
                _say(
                    f"The storage is unreachable ({error.strerror or error}). Retrying for up to "
                    f"{patience_s:.0f} s"
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSES_S[1])
        else:
            if pause_s > _PAUSES_S[0]:
                _say(f"The storage is reachable again, after {time.monotonic() - begin:.0f} s")
            return result
