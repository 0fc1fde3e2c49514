"""A study file that runs one trial of the log again, with every setting written out."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from kdr.config.strict_yaml import parse_yaml
from kdr.config.study import study_from
from kdr.errors import ConfigError
from kdr.report.ranking import RankedTrial
from kdr.results.reader import Log


def best_study_yaml(log: Log, study: str, trial: RankedTrial, metric: str) -> str:
    """The text of a study of one trial, which `kdr.config.study.read_study` reads.

    The search is left out, and so is the search split: the new study trains on all training images and reports on the
    validation set, which the search has not seen.

    Raises:
        ConfigError: if this version cannot read the trial's settings.
    """
    settings = json.loads(trial.state.config)
    split = settings["data"].pop("search_split", 0)
    configs = [json.loads(row["study_config"]) for row in log.arms_of(study) if row["study_config"]]
    content: dict[str, Any] = {"study": f"{study}-best", "trial": settings}
    if configs and "resources" in configs[-1]:
        content["resources"] = configs[-1]["resources"]
    text = "".join(f"# {line}\n" for line in _head(study, trial, metric, split)) + _dumped(content)
    try:
        study_from(parse_yaml(text, source=trial.key), folder=Path("/"))
    except ConfigError as error:
        raise ConfigError(f"{trial.key}: its settings must be of this version to be exported, got {error}") from error
    return text


def _head(study: str, trial: RankedTrial, metric: str, split: float) -> list[str]:
    value = "none" if trial.value is None else f"{trial.value:.4f}"
    state = trial.state
    lines = [
        f"The best trial of the study {study} by {metric}: {metric} {value} at epoch {state.epoch}, seed {state.seed}.",
        f"Trial {trial.name}, key {trial.key}, commit {state.last.commit or 'unknown'}.",
    ]
    if split:
        lines.append(
            f"That {metric} is of images held out of the training set (search_split: {split:g}), on which it was chosen."
        )
        lines.append("This study trains on all training images and reports on the validation set, which the search has not seen.")
    return lines


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, and quotes every text that the strict reader would take for a number."""


_Dumper.add_representer(list, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True))
_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def _dumped(content: Mapping[str, Any]) -> str:
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
