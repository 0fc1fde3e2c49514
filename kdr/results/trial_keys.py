"""Finds a trial by its key, or by the start of its key."""

import difflib

from kdr.errors import ConfigError
from kdr.results.reader import Log, TrialState

MIN_LENGTH = 6
"""Minimum length of an abbreviated key."""


def find_trial(log: Log, given: str) -> TrialState:
    """Returns the state of the trial with a key, which may be abbreviated if it stays unique.

    Raises:
        ConfigError: if no trial or several trials match.
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
        f"KEY: must be the key of a trial in the log, or its first {MIN_LENGTH} or more "
        f"characters, got {given!r}. "
    )
    if found:
        raise ConfigError(f"{rule}{len(found)} keys match: {', '.join(found[:5])}")
    # compared with as many characters as were given, since a whole key would never be similar
    near = sorted(
        states,
        key=lambda key: difflib.SequenceMatcher(
            None, given, key[: max(len(given), MIN_LENGTH)]
        ).ratio(),
    )
    raise ConfigError(f"{rule}Nearest: {', '.join(reversed(near[-3:])) or 'the log is empty'}")
