"""Settings of a search: parameters with their ranges and conditions, the sampler, early stopping
and the budget.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from kdr.config.canonical import canonical_json
from kdr.config.settings import Count, Positive, Settings

Metric = Literal["AP", "AP50", "AP75", "APs", "APm", "APl"]


class Parameter(Settings):
    """One searched setting. Exactly one of `float`, `int`, `choice` and `subset` says what is
    drawn.
    """

    float_: Annotated[tuple[float, float] | None, Field(alias="float")] = None
    """Range [low, high] of real numbers."""
    int_: Annotated[tuple[int, int] | None, Field(alias="int")] = None
    """Range [low, high] of whole numbers, both included."""
    choice: Annotated[tuple[JsonValue, ...] | None, Field(min_length=1)] = None
    """Values to choose from."""
    subset: Annotated[tuple[JsonValue, ...] | None, Field(min_length=1)] = None
    """Members, each of which is drawn in or out."""
    log: bool = False
    """Draw on a log scale (float and int)."""
    at_least: Annotated[int, Field(ge=0)] = 0
    """Smallest number of members of a subset."""
    points: Annotated[int, Field(ge=2)] | None = None
    """Number of values of a float range in a grid."""
    when: dict[str, JsonValue] = {}
    """Conditions on other settings, all of which must hold for this one to be drawn: a value, a
    list of values, `empty` or `not empty`. Where they do not hold, the setting keeps the value that
    the trial gives it."""

    @property
    def kind(self) -> str:
        """Which of the four it is: "float", "int", "choice" or "subset"."""
        return next(
            name
            for name in ("float", "int", "choice", "subset")
            if self.drawn_from(name) is not None
        )

    def drawn_from(self, kind: str) -> tuple[Any, ...] | None:
        """The range or the members given under `kind`, None if that is not the kind."""
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
            raise ValueError(f"log: only for float and int, got it on {kind}")
        elif len({canonical_json(value) for value in values}) < len(values):
            raise ValueError(f"{kind}: each value once, got {list(values)}")
        if self.at_least and kind != "subset":
            raise ValueError(f"at_least: only for subset, got it on {kind}")
        if self.at_least > len(values) and kind == "subset":
            raise ValueError(f"at_least: at most the {len(values)} members, got {self.at_least}")
        if self.points and kind != "float":
            raise ValueError(f"points: only for float, got it on {kind}")
        return self


class Seeded(Settings):
    """A sampler with a seed."""

    seed: int = 0
    """Seed of the sampler; one per sweep."""


class Sampler(Settings):
    """Which settings are tried next. One of `tpe`, `random` and `grid`; a bare name takes its
    defaults.
    """

    tpe: Seeded | None = None
    """Tree-structured Parzen estimator, multivariate and grouped (Optuna)."""
    random: Seeded | None = None
    """Independent draws."""
    grid: Settings | None = None
    """Every combination once."""

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
    """Asynchronous successive halving: at each rung only the best 1/reduction go on."""

    grace_epochs: Count = 1
    """Epochs that every trial gets; the first rung."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Rungs are `reduction` times as far apart each, and one in `reduction` passes each of them."""


class Median(Settings):
    """Stops a trial whose running average falls behind the median of the others'."""

    grace_epochs: Count = 1
    """Epochs that every trial gets."""
    min_trials: Count = 3
    """Trials needed before any is stopped."""


class EarlyStopping(Settings):
    """Which trials are stopped early. One of `asha` and `median`, or neither; a bare name takes its
    defaults.
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
            raise ValueError("needs one of asha, median, or none, got both")
        return self


class Search(Settings):
    """A search over settings of the trial."""

    metric: Metric = "AP"
    """What is maximised, at the last epoch."""
    trials: Count | None = None
    """Budget: trials that this study runs, stopped and failed ones included. Not needed for a
    grid."""
    hours: Positive | None = None
    """Budget: wall-clock hours after which no new trial starts, counted over all sessions of the
    study."""
    gpu_hours: Positive | None = None
    """Budget: GPUs that trials hold times their hours, the teacher's included, after which no new
    trial starts, counted over all sessions of the study. Needs GPUs."""
    sampler: Sampler = Sampler(tpe=Seeded())
    """Which settings are tried next."""
    stop_early: EarlyStopping = EarlyStopping()
    """Which trials are stopped early."""
    parameters: Annotated[dict[str, Parameter], Field(min_length=1)]
    """Searched settings by their path in the trial, such as `distill.kdr.weight`."""
    enqueue: tuple[dict[str, JsonValue], ...] = ()
    """Settings that are tried first, by path; parameters left out take the trial's values."""

    @model_validator(mode="after")
    def _has_a_budget(self) -> Self:
        if (
            self.sampler.grid is None
            and self.trials is None
            and self.hours is None
            and self.gpu_hours is None
        ):
            raise ValueError(
                "needs a budget of trials, hours or gpu_hours, got none. Add trials: 16"
            )
        return self
