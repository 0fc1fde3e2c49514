"""Renames keys of a state_dict by rules."""

import re
from collections.abc import Callable, Sequence

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern for a whole key, and its replacement as in `re.sub`."""


def renamed(key: str, rules: Sequence[Rule]) -> str:
    """Returns the key renamed by the first rule that matches it as a whole, or unchanged."""
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, key)
        if found:
            return found.expand(replacement) if isinstance(replacement, str) else replacement(found)
    return key
