"""Renamed settings: their old names still work, with a note that names the new one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RENAMED: dict[str, str] = {"faults.alike": "faults.abort_after"}
"""Old path -> new path in a study file, such as `trial.training.lr`; both are in the same group.

An entry is deleted one release later. Renaming a setting of the trial takes more than an entry:
its name is part of every trial key and of the trial configs in old logs. """

_GROUPS_BY_PATH = (
    "search.parameters",
    "search.parameters.*.when",
    "search.enqueue.*",
    "ablation.baseline",
    "ablation.arms.*",
    "ablation.factors.*.*",
)
"""Groups of a study file whose names are paths in the trial. `*` is any name or list index."""


@dataclass(frozen=True)
class PresentNames:
    """A study's settings under their present names."""

    content: dict[str, Any]
    notes: tuple[str, ...]
    """One line for each old name that was replaced."""
    problems: tuple[str, ...]
    """One line for each setting given under both names; `content` keeps the new one."""


def present_names(content: Mapping[str, Any]) -> PresentNames:
    """Replaces the old names of renamed settings.

    Args:
        content: a study as plain values, or changes to one by path, as given to `--set`.
    """
    result: Any = dict(content)
    notes: dict[str, None] = {}
    problems: list[str] = []
    for old, new in RENAMED.items():
        places = {"": (old, new)}
        if old.startswith("trial."):
            in_trial = (old.removeprefix("trial."), new.removeprefix("trial."))
            places |= dict.fromkeys(_GROUPS_BY_PATH, in_trial)
        for groups, (before, after) in places.items():
            rename = functools.partial(
                _renamed, old=before, new=after, notes=notes, problems=problems
            )
            result = _changed_at(groups.split(".") if groups else [], result, "", rename)
    return PresentNames(result, tuple(notes), tuple(problems))


def old_names(group: str, name: str) -> list[str]:
    """Returns the old names of a setting; `group` is empty for a setting of the study itself."""
    path = f"{group}.{name}" if group else name
    return [old.rpartition(".")[2] for old, new in RENAMED.items() if new == path]


def _renamed(
    group: Any, place: str, *, old: str, new: str, notes: dict[str, None], problems: list[str]
) -> Any:
    """Renames a setting inside a group, whose names may be paths themselves."""
    if not isinstance(group, Mapping):
        return group  # a wrong type: validation reports it
    result: dict[str, Any] = {}
    for name, value in group.items():
        if f"{name}.".startswith(f"{old}."):  # the setting, or a path into the renamed group
            present = new + name[len(old) :]
            if present in group:
                problems.append(
                    f"{place}{name}: must not be set together with its new name, got both. Keep "
                    f"{place}{present}"
                )
                continue
            notes[f"{place}{old}: renamed to {place}{new}"] = None
            result[present] = value
        elif old.startswith(f"{name}."):
            start = len(name) + 1
            result[name] = _renamed(
                value,
                f"{place}{name}.",
                old=old[start:],
                new=new[start:],
                notes=notes,
                problems=problems,
            )
        else:
            result[name] = value
    return result


def _changed_at(
    groups: Sequence[str], value: Any, place: str, change: Callable[[Any, str], Any]
) -> Any:
    """Applies a change to every group that matches a pattern; `place` is the path so far."""
    if not groups:
        return change(value, place)
    wanted, *inner = groups
    if wanted == "*" and isinstance(value, list):
        return [
            _changed_at(inner, member, f"{place}{index}.", change)
            for index, member in enumerate(value)
        ]
    if not isinstance(value, Mapping):
        return value
    return {
        name: _changed_at(inner, member, f"{place}{name}.", change)
        if wanted in ("*", name)
        else member
        for name, member in value.items()
    }
