"""A leave-one-out ablation of a chosen trial's settings, with fresh seeds."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdr.config.canonical import canonical_json
from kdr.config.distill import OFF
from kdr.config.overrides import changed, value_at
from kdr.config.problems import validated
from kdr.config.study import Study, study_from
from kdr.config.trial import TrialConfig
from kdr.errors import ConfigError
from kdr.report.followup.best_study import resources_of
from kdr.report.followup.choice import seeds_of_choice
from kdr.report.followup.study_text import study_text
from kdr.report.ranking import searched_metric
from kdr.results.reader import Log, TrialState

FIRST_SEED = 100
"""First new seed by default: far from 0, where most searches start."""
_PARTS = {"review_links": "review", "masks": "decouple", "pyramid_scales": "pyramid"}
"""Setting -> name of the part that it switches."""


@dataclass(frozen=True)
class ChosenTrial:
    """A trial whose settings were chosen, with the facts about the choice."""

    name: str
    """Name of the study that chose it or contains it."""
    source: str
    """Description of the trial, for the head of the file."""
    config: TrialConfig
    candidates: tuple[str, ...]
    """Paths of settings that may have been chosen."""
    before: Mapping[str, Any]
    """Settings before the choice; settings outside the methods are reset to these."""
    metric: str
    resources: Mapping[str, Any]
    seeds: frozenset[int]
    """Seeds that took part in the choice."""


def chosen_by_search(log: Log, state: TrialState) -> ChosenTrial:
    """Describes a trial of a logged search.

    Raises:
        ConfigError: if it is not a student of a search.
    """
    rows = [row for row in log.arms_of(state.study) if row["study_config"]]
    # a study may have been run with several files; the last to hold this trial counts
    contents = [json.loads(row["study_config"]) for row in rows if row["key"] == state.key]
    if state.role != "student" or not contents or not contents[-1].get("search"):
        raise ConfigError(
            f"TRIAL: must be a trial of a search, got {state.role} {state.key} of {state.study}. "
            "Give another key, or a study file with a single trial"
        )
    search = study_from(contents[-1], folder=Path("/"))
    assert search.search is not None
    config = _without_split(state.config)
    # every trial of the search took part in the choice, not only the best
    others = {
        other.seed for other in log.states_of(state.study).values() if other.role == "student"
    }
    return ChosenTrial(
        name=state.study,
        source=f"trial {state.key} of the search {state.study}",
        config=config,
        candidates=tuple(search.search.parameters),
        before=search.base.model_dump(mode="json"),
        metric=searched_metric(log, state.study),
        resources=resources_of(log, state.study),
        seeds=frozenset({config.seed, *others, *_seeds(log, config)}),
    )


def chosen_in_file(log: Log, study: Study) -> ChosenTrial:
    """Describes the trial of a study file, such as `best --export` writes.

    Raises:
        ConfigError: if the study is a search or an ablation.
    """
    if study.search is not None or study.ablation is not None:
        kind = "a search" if study.search is not None else "an ablation"
        raise ConfigError(
            f"TRIAL: must be a study with a single trial, got {kind}, {study.study}. Give the key "
            "of one of its trials"
        )
    config = _without_split(study.base.model_dump_json())
    methods = config.distill.methods()
    # only resources that the file sets: defaults belong to the machine that runs the ablation
    content = study.model_dump(mode="json", exclude_unset=True)
    return ChosenTrial(
        name=study.study,
        source=f"the trial of the study {study.study}",
        config=config,
        candidates=tuple(
            f"distill.{name}.{setting}"
            for name, method in methods.items()
            for setting in type(method).model_fields
        ),
        before=config.model_dump(mode="json"),
        metric="AP",
        resources={"resources": content["resources"]} if "resources" in content else {},
        seeds=frozenset({config.seed, *_seeds(log, config)}),
    )


def ablation_yaml(chosen: ChosenTrial, *, num_seeds: int, first_seed: int | None = None) -> str:
    """Returns the text of the ablation's study file.

    The ablation trains on all training images and reports on the validation set.

    Args:
        chosen: the trial that becomes the baseline.
        num_seeds: seeds per arm.
        first_seed: the first of them; None takes the first free range from FIRST_SEED on.

    Raises:
        ConfigError: if a seed took part in the choice, or there is no choice to undo.
    """
    methods = chosen.config.distill.methods()
    factors = {
        **_choices(chosen),
        **{name: {"off": {f"distill.{name}": None}} for name in methods},
    }
    if not factors:
        raise ConfigError(
            f"TRIAL: must have a method or another choice to undo, got none in {chosen.source}"
        )
    # seeds that took part in the choice carry its luck, and would repeat it in the table
    first = _first_free(chosen.seeds, num_seeds) if first_seed is None else first_seed
    used = sorted(chosen.seeds.intersection(range(first, first + num_seeds)))
    if used:
        raise ConfigError(
            f"--first-seed: must give seeds that took no part in the choice, got {first} to "
            f"{first + num_seeds - 1}, of which {', '.join(map(str, used))} did. Leave it out to "
            f"start at {_first_free(chosen.seeds, num_seeds)}"
        )
    ablation: dict[str, Any] = {
        "design": "leave_one_out",
        "factors": factors,
        "seeds": {"count": num_seeds, "first": first},
        "metric": chosen.metric,
        # with several methods there is no single arm of primary interest
        **({"contrast": f"{next(iter(methods))}=off"} if len(methods) == 1 else {}),
    }
    trial = chosen.config.model_dump(mode="json")
    # removed, so that the defaults apply: all training images, and the ablation's seeds
    trial["data"].pop("search_split")
    trial.pop("seed")
    trial["distill"] = {
        name: method for name, method in trial["distill"].items() if method is not None
    }
    content = {
        "study": f"{chosen.name}-ablation",
        "trial": trial,
        "ablation": ablation,
        **chosen.resources,
    }
    return study_text(content, _head(chosen, first, num_seeds), source=chosen.source)


def _without_split(config: str) -> TrialConfig:
    settings = json.loads(config)
    return validated(TrialConfig, changed(settings, {"data.search_split": 0}), prefix="trial")


def _seeds(log: Log, config: TrialConfig) -> Iterator[int]:
    return (seed for seeds in seeds_of_choice(log, config).values() for seed in seeds)


def _first_free(used: frozenset[int], count: int) -> int:
    first = FIRST_SEED
    while taken := used.intersection(range(first, first + count)):
        first = max(taken) + 1
    return first


def _choices(chosen: ChosenTrial) -> dict[str, dict[str, dict[str, Any]]]:
    """Returns one factor per choice: its part switched off, or its setting reset."""
    factors: dict[str, dict[str, dict[str, Any]]] = {}
    settings = chosen.config.model_dump(mode="json")
    own = canonical_json(_effective(chosen.config))
    for path, (level, value) in _put_back(chosen, settings):
        try:
            config = validated(TrialConfig, changed(settings, {path: value}))
        except ConfigError:
            continue  # the other choices need this setting
        # undoing may change nothing, for example when the choice was the default
        if canonical_json(_effective(config)) != own:
            factors[_factor(path, chosen.candidates)] = {level: {path: value}}
    return factors


def _put_back(
    chosen: ChosenTrial, settings: dict[str, Any]
) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Yields (path, (level, value)) for each choice that can be undone."""
    for path in chosen.candidates:
        group, *rest = path.split(".")
        if (
            group == "distill"
            and len(rest) == 2
            and value_at(settings, f"distill.{rest[0]}") is not None
        ):
            method, setting = rest
            yield (
                path,
                (
                    ("off", OFF[setting])
                    if setting in OFF
                    else ("default", _default(settings, method, setting))
                ),
            )
        # epochs are a budget, not a choice: arms with different epochs could not be compared
        elif group in ("student", "teacher", "training") and path != "training.epochs":
            yield path, ("before", value_at(chosen.before, path))


def _default(settings: dict[str, Any], method: str, setting: str) -> Any:
    """Returns a method's default for this pair of detectors, under its preset."""
    preset = value_at(settings, f"distill.{method}.preset")
    # defaults depend on both detectors and on the preset, so a whole trial is validated
    plain = {} if preset is None or setting == "preset" else {"preset": preset}
    config = validated(TrialConfig, changed(settings, {f"distill.{method}": plain}))
    return value_at(config.model_dump(mode="json"), f"distill.{method}.{setting}")


def _effective(config: TrialConfig) -> dict[str, Any]:
    """Returns the settings that have an effect."""
    distill = {name: method.canonical() for name, method in config.distill.methods().items()}
    return {**config.model_dump(mode="json"), "distill": distill}


def _factor(path: str, paths: Iterable[str]) -> str:
    """Returns a factor's name: the part it switches, or the shortest unique form of the path."""
    last = path.rpartition(".")[2]
    same = [other for other in paths if other.rpartition(".")[2] == last]
    return _PARTS.get(last, last) if len(same) == 1 else path


def _head(chosen: ChosenTrial, first: int, num_seeds: int) -> list[str]:
    used = ", ".join(map(str, sorted(chosen.seeds)))
    return [
        f"Question: which choices of {chosen.source} matter?",
        "Each choice is undone alone; one more arm per method switches the method off.",
        (
            f"The settings were chosen with seeds {used}; this study uses {first} to "
            f"{first + num_seeds - 1}."
        ),
        "It trains on all training images and reports on the validation set.",
        "Add `margin`, in units of the metric, to find differences too small to matter.",
    ]
