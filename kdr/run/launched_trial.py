"""A trial on its way from the driver to its actor, as plain values in Tune's `config`.

Only this module knows the names of these values.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

from ray import tune

from kdr.config.trial import Trial, TrialConfig
from kdr.plan.points import Point

_TRIAL = "trial"
"""Tune adds keys of its own to a config, so ours are nested under one name."""


@dataclass(frozen=True)
class LaunchedTrial:
    """A trial that the driver hands to Tune, with its place in the study.

    The fields are plain values because Tune pickles, copies and saves configs as it likes.
    """

    key: str
    config: str
    """The trial's settings (`TrialConfig`) as JSON."""
    data_id: str
    teacher_id: str | None
    parameters: str | None = None
    """Settings that the study chose for the trial, as JSON {path: value}; None in a study of one
    trial."""
    trials_known: int | None = None
    """How many completed trials the sampler knew when it proposed this one; None without a
    search."""
    attempts_before: int = 0
    """Attempts at the trial in earlier runs of the study. An end that a later attempt logged
    belongs to this run."""

    @classmethod
    def of(
        cls,
        trial: Trial,
        *,
        parameters: Mapping[str, Any] | None = None,
        trials_known: int | None = None,
        attempts_before: int = 0,
    ) -> Self:
        """Returns a trial in the form that Tune can carry; see the fields for the arguments."""
        return cls(
            key=trial.key,
            config=trial.config.model_dump_json(),
            data_id=trial.data_id,
            teacher_id=trial.teacher_id,
            parameters=None if parameters is None else json.dumps(dict(parameters)),
            trials_known=trials_known,
            attempts_before=attempts_before,
        )

    @classmethod
    def of_config(cls, config: Mapping[str, object]) -> Self:
        """Returns the trial in its Tune config."""
        return cls(**cast("dict[str, Any]", config[_TRIAL]))

    def as_config(self) -> dict[str, object]:
        """Returns the trial's Tune config, as a searcher returns it."""
        return {_TRIAL: asdict(self)}

    @property
    def trial(self) -> Trial:
        """The trial itself; its settings are parsed at every access."""
        # here, not in `of_config`: a scheduler needs only the key, at every result
        settings = TrialConfig.model_validate_json(self.config)
        return Trial(self.key, settings, data_id=self.data_id, teacher_id=self.teacher_id)

    @property
    def point(self) -> Point:
        """Settings that the study chose for the trial, by path; empty in a study of one trial."""
        point: Point = json.loads(self.parameters) if self.parameters else {}
        return point


def as_tune_grid(trials: Iterable[LaunchedTrial]) -> dict[str, Any]:
    """Returns a search space for Tune that runs a list of trials in order."""
    return {_TRIAL: tune.grid_search([asdict(trial) for trial in trials])}
