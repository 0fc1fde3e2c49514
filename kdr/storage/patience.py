"""Waiting for a storage that cannot be reached: a file server that is started anew, a network that
is away for a minute.
"""

import errno
import logging
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_say = logging.getLogger(__name__).warning

PATIENCE_S = 300.0
"""How long a run waits."""
BRIEF_S = 10.0
"""How long a command waits that someone looks at, and whatever is done before a run begins."""
_PAUSES_S = (1.0, 15.0)
"""The first pause between two tries, and the longest."""
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
"""Errors of a file server or a network that may be gone a minute later; a full disk or a missing
permission stays."""


def patiently(do: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """Does something with files, again and again while their storage cannot be reached; says so
    once, and when it is over.

    Args:
        do: may be done several times.
        patience_s: how long to go on; then the error is raised.

    Raises:
        OSError: as `do` raised it; at once where waiting does not help.
    """
    begin, pause_s = time.monotonic(), _PAUSES_S[0]
    while True:
        try:
            result = do()
        except OSError as error:
            left_s = begin + patience_s - time.monotonic()
            if error.errno not in _PASSES or left_s <= 0:
                raise
            if pause_s == _PAUSES_S[0]:
                _say(
                    f"The storage cannot be reached ({error.strerror or error}). Trying again for "
                    f"{patience_s:.0f} s"
                )
            time.sleep(min(pause_s, left_s))
            pause_s = min(2 * pause_s, _PAUSES_S[1])
        else:
            if pause_s > _PAUSES_S[0]:
                _say(f"The storage can be reached again, after {time.monotonic() - begin:.0f} s")
            return result
