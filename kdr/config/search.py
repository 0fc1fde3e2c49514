"""Settings of a search: parameters, sampler, early stopping and budget."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from kdr.config.canonical import canonical_json
from kdr.config.settings import Count, Positive, Settings

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl"]


class Parameter(Settings):
    """A searched setting. Exactly one of `float`, `int`, `choice` and `subset` is set."""

    # `float` and `int` are Python's types, so these fields need aliases
    float_: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    """Range [low, high] of real numbers."""
    int_: Annotated[tuple[int, int] | None, Field(alias="int")] = None
    """Range [low, high] of whole numbers, both included."""
    choice: Annotated[tuple[JsonValue, ...] | None, Field(min_length=1)] = None
    """Values to choose from."""
    subset: Annotated[tuple[JsonValue, ...] | None, Field(min_length=1)] = None
    """List members, each of which is drawn or left out. For settings that take a list."""
    log: bool = False
    """Draw on a log scale (float and int)."""
    at_least: Annotated[int, Field(ge=0)] = 0
    """Smallest number of members to draw from `subset`."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Number of evenly spaced values that a grid takes from a float range."""
    when: dict[str, JsonValue] = {}
    """Path of another setting -> its value, a list of values, `empty` or `not empty`. The parameter
    is drawn only if all these conditions hold; otherwise it keeps its value in `trial`."""

    @property
    def kind(self) -> str:
        """Kind of the parameter: "float", "int", "choice" or "subset"."""
        return next(
            name
            for name in ("float", "int", "choice", "subset")
            if self.drawn_from(name) is not None
        )

    def drawn_from(self, kind: str) -> tuple[Any, ...] | None:
        """Returns the range or members if this is the parameter's kind, else None."""
        value: tuple[Any, ...] | None = getattr(
            self, f"{kind}_" if kind in ("float", "int") else kind
        )
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        given = [
            name
            for name in ("float", "int", "choice", "subset")
            if self.drawn_from(name) is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "needs exactly one of float, int, choice, subset, got "
                f"{' and '.join(given) or 'none'}"
            )
        [kind] = given
        values = self.drawn_from(kind) or ()
        if kind in ("float", "int"):
            low, high = values
            if self.log and not 0 < low < high:
                raise ValueError(f"needs 0 < low < high on a log scale, got low={low}, high={high}")
            if not low < high:
                raise ValueError(f"needs low < high, got low={low}, high={high}")
        elif self.log:
            raise ValueError(f"log: must be used with float or int only, got {kind}")
        # as JSON: in a Python set 1 and true would be equal, and lists are not hashable
        elif len({canonical_json(value) for value in values}) < len(values):
            raise ValueError(f"{kind}: must not repeat a value, got {list(values)}")
        if self.at_least and kind != "subset":
            raise ValueError(f"at_least: must be used with subset only, got {kind}")
        if self.at_least > len(values) and kind == "subset":
            raise ValueError(
                f"at_least: must be at most {len(values)}, the members of subset, got "
                f"{self.at_least}"
            )
        if self.points and kind != "float":
            raise ValueError(f"points: must be used with float only, got {kind}")
        return self


class Seeded(Settings):
    """Settings of a sampler that draws at random."""

    seed: int = 0
    """Seed of the sampler's draws."""


class GridSearch(Settings):
    """Every combination of values, once each. It has no settings."""


class Sampler(Settings):
    """How the search chooses settings. One of `tpe`, `random` and `grid`; a bare name, such as
    `sampler: tpe`, uses its defaults.
    """

    tpe: Seeded | None = None
    """Tree-structured Parzen estimator, multivariate and grouped (Optuna)."""
    random: Seeded | None = None
    """Independent draws."""
    grid: GridSearch | None = None
    """Every combination of values, once each."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {value: {}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs exactly one of tpe, random, grid, got {' and '.join(given) or 'none'}"
            )
        return self


class Asha(Settings):
    """Asynchronous successive halving: at each rung, only the best 1/reduction of the trials
    continue.
    """

    grace_epochs: Count = 1
    """Epochs that every trial runs; the first rung."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Each rung is at `reduction` times the epochs of the previous one, and one trial in
    `reduction` passes it."""


class Median(Settings):
    """Median stopping rule: stops a trial whose running average falls below the median of the
    others.
    """

    grace_epochs: Count = 1
    """Epochs that every trial runs."""
    min_trials: Count = 3
    """Trials needed before any trial is stopped."""


class EarlyStopping(Settings):
    """Which trials to stop early. One of `asha` and `median`, or `none`; a bare name, such as
    `stop_early: asha`, uses its defaults.
    """

    asha: Asha | None = None
    """Asynchronous successive halving."""
    median: Median | None = None
    """Median stopping rule."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if value == "none":
            return {}
        return {value: {}} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if self.asha is not None and self.median is not None:
            raise ValueError("must be asha, median or none, got both")
        return self


class Search(Settings):
    """A search for the best values of some settings of the trial."""

    metric: Metric = "AP"
    """Metric to maximise, at the last epoch."""
    trials: Count | None = None
    """Budget in trials, including stopped and failed ones. Not needed for a grid."""
    hours: Positive | None = None
    """Budget in wall-clock hours, over all runs of the study. Afterwards no new trial starts."""
    gpu_hours: Positive | None = None
    """Budget in GPU-hours, over all runs of the study and including the teacher's training: GPUs
    that trials hold, times hours. Afterwards no new trial starts. Needs GPUs."""
    sampler: Sampler = Sampler(tpe=Seeded())
    """How the search chooses settings."""
    stop_early: EarlyStopping = EarlyStopping()
    """Which trials to stop early."""
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Path of a setting in the trial, such as `distill.kdr.weight` -> the values to search."""
    enqueue: tuple[dict[str, JsonValue], ...] = ()
    """Settings to try first, by path. Parameters left out keep their values in `trial`."""

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if (
            self.sampler.grid is None
            and self.trials is None
            and self.hours is None
            and self.gpu_hours is None
        ):
            raise ValueError(
                "needs a budget in trials, hours or gpu_hours, got none. Add trials: 16"
            )
        return self
