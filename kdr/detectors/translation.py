"""Gives keys of a state_dict other names, by rules."""

import re
from collections.abc import Callable, Sequence

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern for a whole key, and what `re.sub` puts in its place."""


def renamed(key: str, rules: Sequence[Rule]) -> str:
    """Returns the key's name by the first rule whose pattern it matches as a whole; the key itself
    if none does.
    """
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, key)
        if found:
            return found.expand(replacement) if isinstance(replacement, str) else replacement(found)
    return key
