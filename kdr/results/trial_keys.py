"""The trial that a user means by a key, or by the beginning of one."""

import difflib

from kdr.errors import ConfigError
from kdr.results.reader import Log, TrialState

MIN_LENGTH = 6
"""Letters that the beginning of a key needs."""


def find_trial(log: Log, given: str) -> TrialState:
    """The state of the trial with a key, or with the only key that begins so.

    Raises:
        ConfigError: if there is none, or more than one.
    """
    states = log.states()
    if given in states:
        return states[given]
    found = (
        sorted(key for key in states if key.startswith(given)) if len(given) >= MIN_LENGTH else []
    )
    if len(found) == 1:
        return states[found[0]]
    rule = (
        f"KEY: must be a trial's key in the log, or at least {MIN_LENGTH} letters that only one "
        f"begins with, got {given!r}. "
    )
    if found:
        raise ConfigError(f"{rule}{len(found)} begin so: {', '.join(found[:5])}")
    near = sorted(
        states,
        key=lambda key: difflib.SequenceMatcher(
            None, given, key[: max(len(given), MIN_LENGTH)]
        ).ratio(),
    )
    raise ConfigError(f"{rule}Nearest: {', '.join(reversed(near[-3:])) or 'the log is empty'}")
