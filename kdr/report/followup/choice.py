"""With which seeds the settings of a trial were chosen: a table over the same seeds would show the
luck of the choice.
"""

import json
from collections.abc import Collection
from typing import Any

from kdr.config.trial import TrialConfig
from kdr.results.reader import Log

_CHOSEN = ("student", "teacher", "distill")
"""What a search and the ablation after it have in common; data and length of training may
differ."""


def seeds_of_choice(log: Log, config: TrialConfig) -> dict[str, set[int]]:
    """Study -> the seeds with which a search has trained a trial of the same student, teacher and
    distillation.

    Args:
        log: the trial log.
        config: the trial whose settings may have been chosen.
    """
    wanted = _chosen(json.loads(config.model_dump_json()))
    found: dict[str, set[int]] = {}
    for study in log.studies():
        searches = {
            row["key"]
            for row in log.arms_of(study)
            if json.loads(row["study_config"] or "{}").get("search")
        }
        for state in log.states_of(study).values():
            if (
                state.key in searches
                and state.role == "student"
                and _chosen(json.loads(state.config)) == wanted
            ):
                found.setdefault(study, set()).add(state.seed)
    return found


def choice_warnings(log: Log, config: TrialConfig, seeds: Collection[int]) -> list[str]:
    """What to tell of an ablation whose baseline was chosen with one of its own seeds."""
    return [
        f"ablation.seeds: the search {study} has chosen with {', '.join(map(str, sorted(shared)))} "
        "among settings like the baseline's, whose luck with it the table would show. Take other "
        "seeds"
        for study, chosen in seeds_of_choice(log, config).items()
        if (shared := chosen & set(seeds))
    ]


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings.get(name) for name in _CHOSEN}
