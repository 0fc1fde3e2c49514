"""A study file that repeats a logged trial, with every setting written out."""

import json
from typing import Any

from kdr.report.followup.study_text import study_text
from kdr.report.ranking import RankedTrial
from kdr.results.reader import Log


def best_study_yaml(log: Log, study: str, trial: RankedTrial, metric: str) -> str:
    """Returns the text of a study file with this single trial.

    It has no search and no search split: the new study trains on all training images and reports
    on the validation set, which the search has not seen.

    Raises:
        ConfigError: if this version cannot read the trial's settings.
    """
    settings = json.loads(trial.state.config)
    # the split was for the choice; its default, 0, trains on all images
    split = settings["data"].pop("search_split", 0)
    content: dict[str, Any] = {"study": f"{study}-best", "trial": settings} | resources_of(
        log, study
    )
    return study_text(content, _head(study, trial, metric, split), source=trial.key)


def resources_of(log: Log, study: str) -> dict[str, Any]:
    """Returns the resources in a study's file at its last run; empty if it set none."""
    content = log.study_content(study)
    return {"resources": content["resources"]} if "resources" in content else {}


def _head(study: str, trial: RankedTrial, metric: str, split: float) -> list[str]:
    value = "none" if trial.value is None else f"{trial.value:.4f}"
    state = trial.state
    lines = [
        (
            f"The best trial of the study {study} by {metric}: {metric} {value} at epoch "
            f"{state.epoch}, seed {state.seed}."
        ),
        f"Trial {trial.name}, key {trial.key}, commit {state.last.commit or 'unknown'}.",
    ]
    # the value in the head cannot be reproduced: training and evaluation now use other images
    if split:
        lines.append(
            f"That {metric} was measured on held-out training images (search_split: {split:g}), "
            "the same images on which the trial was chosen."
        )
        lines.append(
            "This study trains on all training images and reports on the validation set, which the "
            "search has not seen."
        )
    return lines
