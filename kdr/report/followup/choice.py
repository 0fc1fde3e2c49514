"""The seeds with which a trial's settings were chosen; a report must use other seeds.

The best trial of a search was partly lucky with its seed. A table over the same seed repeats that
luck.
"""

import json
from collections.abc import Collection
from typing import Any

from kdr.config.trial import TrialConfig
from kdr.report.formatting import seeds_text
from kdr.results.reader import Log

_CHOSEN = ("student", "teacher", "distill")
"""Settings that a search shares with the ablation after it; data and epochs may differ."""


def seeds_of_choice(log: Log, config: TrialConfig) -> dict[str, set[int]]:
    """Returns search -> the seeds with which it trained this student, teacher and distillation.

    Args:
        log: the trial log.
        config: the trial whose settings may have been chosen.
    """
    # through JSON, so that tuples compare equal to the log's lists
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
    """Returns a warning for each search that chose the baseline with an ablation's seed."""
    return [
        f"ablation.seeds: the search {study} chose such settings with "
        f"{seeds_text(sorted(shared))}, so the table would repeat its luck. Use other seeds"
        for study, chosen in seeds_of_choice(log, config).items()
        if (shared := chosen & set(seeds))
    ]


def _chosen(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings.get(name) for name in _CHOSEN}
