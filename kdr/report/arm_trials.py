"""The arms of a study in the log, each with its trials by seed and their budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.config.ablation import BASELINE, Ablation
from kdr.errors import ConfigError
from kdr.report.formatting import counted, spaced
from kdr.report.measures import Measure, measured
from kdr.results.flat_settings import flat_settings
from kdr.results.reader import Log, TrialState


@dataclass(frozen=True)
class Budget:
    """The training budget of a trial. Arms with unequal budgets differ in more than their
    settings.
    """

    epochs: int
    images_seen: int | None
    """Training images up to the last epoch; None if the log does not say."""
    workers: int
    """Data-parallel processes of one trial."""

    def differs_from(self, other: "Budget") -> bool:
        """Returns whether two budgets differ; unknown numbers of images count as equal."""
        images = (
            None in (self.images_seen, other.images_seen) or self.images_seen == other.images_seen
        )
        return (self.epochs, self.workers) != (other.epochs, other.workers) or not images

    def __str__(self) -> str:
        images = "" if self.images_seen is None else f", {counted(self.images_seen, 'image')}"
        return f"{counted(self.epochs, 'epoch')}{images}, {counted(self.workers, 'worker')}"


@dataclass(frozen=True)
class ArmTrial:
    """One seed of an arm."""

    key: str
    seed: int
    state: TrialState | None
    """None if it has not started."""
    budget: Budget
    batches: tuple[str, ...]
    """Hashes of the first batch of each epoch; empty if the log has none."""
    values: Mapping[str, float]
    """Measure -> value; empty unless the trial is completed."""

    @property
    def is_done(self) -> bool:
        """Whether the trial is completed; its values count only then."""
        return self.state is not None and self.state.state == "completed"

    @property
    def why_not(self) -> str:
        """Why the trial has no result, such as `failed (out_of_memory)`."""
        if self.state is None:
            return "not started"
        name = spaced(self.state.state)
        kind = self.state.last.failure_kind if self.state.state == "failed" else None
        return f"{name} ({kind})" if kind else name


@dataclass(frozen=True)
class ArmTrials:
    """One arm with its trials."""

    name: str
    levels: Mapping[str, str]
    """Factor -> level; empty for an arm without factors."""
    trials: Mapping[int, ArmTrial]
    """By seed."""

    def values(self, measure: str) -> dict[int, float]:
        """Returns a measure by seed, from completed trials that have it."""
        return {
            seed: trial.values[measure]
            for seed, trial in self.trials.items()
            if trial.is_done and measure in trial.values
        }

    def settings(self) -> Mapping[str, Any]:
        """Returns the arm's settings by path, without the seed; empty if no trial has started."""
        states = [trial.state for trial in self.trials.values() if trial.state is not None]
        return (
            {
                path: value
                for path, value in flat_settings(states[0].config).items()
                if path != "seed"
            }
            if states
            else {}
        )


@dataclass(frozen=True)
class LoggedArms:
    """All arms of a study."""

    study: str
    ablation: Ablation | None
    """The design; None for a study that is not an ablation."""
    arms: tuple[ArmTrials, ...]
    """In the order of the study file."""
    reference: str
    """Name of the arm that the others are compared with."""

    def arm(self, name: str) -> ArmTrials:
        """Returns an arm by its name.

        Raises:
            ConfigError: if there is no such arm.
        """
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise ConfigError(
            f"{self.study} has no arm {name!r}. Arms: {', '.join(arm.name for arm in self.arms)}"
        )


def ablation_of(log: Log, study: str) -> Ablation | None:
    """Returns the design of a study's last run; None if that was not an ablation."""
    content = log.study_content(study).get("ablation")
    return Ablation(**content) if content else None


def logged_arms(log: Log, study: str, measures: Sequence[Measure]) -> LoggedArms:
    """Returns the arms of a study's last run, with their trials.

    Raises:
        ConfigError: if no completed trial has a value for a measure.
    """
    # the arms of a search are its trials: `--compare` accepts them, too
    rows = log.ablation_arms_of(study) or log.arms_of(study)
    states = {
        row["key"]: state for row in rows if (state := log.states().get(row["key"])) is not None
    }
    values, ends = measured(log, states, measures), _ends(log, states)
    # workers count as budget: they change the batch of each process and the order of sums
    workers = int((log.study_content(study).get("resources") or {}).get("workers", 1))
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], []).append(row)
    arms = []
    for name, own in by_arm.items():
        trials = {
            row["seed"]: _trial(
                row, states.get(row["key"]), values, ends.get(row["key"], {}), workers
            )
            for row in own
        }
        arms.append(
            ArmTrials(name, json.loads(own[0]["levels"] or "{}"), dict(sorted(trials.items())))
        )
    references = [row["arm"] for row in rows if row["is_reference"]]
    return LoggedArms(
        study, ablation_of(log, study), tuple(arms), references[0] if references else BASELINE
    )


def _ends(log: Log, states: Mapping[str, TrialState]) -> dict[str, dict[str, Any]]:
    """Returns by key the images seen at the last epoch, and the first-batch hash of each."""
    ends: dict[str, dict[str, Any]] = {}
    rows = log.current_epochs.select(["key", "epoch", "images_seen", "first_batch_hash"])
    for row in rows.filter(
        pc.is_in(rows["key"], value_set=pa.array(list(states), pa.string()))
    ).to_pylist():
        end = ends.setdefault(row["key"], {"batches": []})
        end["images_seen"] = row["images_seen"]
        end["batches"] += [row["first_batch_hash"]] if row["first_batch_hash"] else []
    return ends


def _trial(
    row: Mapping[str, Any],
    state: TrialState | None,
    values: Mapping[str, Mapping[str, float]],
    end: Mapping[str, Any],
    workers: int,
) -> ArmTrial:
    key = row["key"]
    # validating all settings of every trial is slow, and only this one is needed
    epochs = (
        int(json.loads(state.config).get("training", {}).get("epochs", state.epoch)) if state else 0
    )
    budget = Budget(epochs, end.get("images_seen"), workers)
    found = {name: by_key[key] for name, by_key in values.items() if key in by_key}
    return ArmTrial(key, row["seed"], state, budget, tuple(end.get("batches", ())), found)
