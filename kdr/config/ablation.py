"""Settings of an ablation: arms as changes to one baseline, their seeds, and the metric."""

import difflib
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from kdr.config.search import Metric
from kdr.config.settings import Count, Positive, Settings

BASELINE = "baseline"
"""Name of the unchanged arm, and of each factor's level in it."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Changes = Annotated[dict[str, JsonValue], Field(min_length=1)]
"""Path in the trial -> new value. A path may name a whole group; null switches a group off."""
Design = Literal["leave_one_out", "add_one_in", "one_at_a_time", "factorial", "arms"]


class SeedRange(Settings):
    """Consecutive seeds."""

    count: Count
    """Number of seeds."""
    first: int = 0
    """First seed."""


class Ablation(Settings):
    """An ablation measures how much each part of the trial contributes to the metric. Every arm
    trains with every seed, to its last epoch: nothing is stopped early.
    """

    baseline: dict[str, JsonValue] = {}
    """Changes to `trial`, by path, that turn it into the arm `baseline`. Empty: `trial` itself is
    the baseline."""
    factors: dict[Name, Annotated[dict[Name, Changes], Field(min_length=1)]] = {}
    """Factor -> level -> the level's changes to the baseline, by path."""
    design: Design = "leave_one_out"
    """Which arms to train. `leave_one_out` and `one_at_a_time` are the same: the baseline, and one
    arm for each level of each factor. `add_one_in`: the arm `nothing`, with all factors changed;
    one arm for each factor restored, such as `+review`; and the baseline. `factorial`: every
    combination of levels, where `baseline` is a level of every factor. `arms`: the baseline and the
    arms listed in `arms`. Arms are compared with the baseline, or in `add_one_in` with
    `nothing`."""
    arms: dict[Name, Changes] = {}
    """For the design `arms`: name of an arm -> its changes to the baseline, by path."""
    leave_out: tuple[Annotated[dict[str, str], Field(min_length=1)], ...] = ()
    """Arms to skip: an entry such as {review: off, weight: low} skips every arm that has all of
    these levels. `baseline` is a level of every factor."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | SeedRange
    """Seeds of every arm, as a list or as {count: 8, first: 100}; `trial.seed` is ignored. Do not
    reuse the seeds with which the settings were chosen: their results are biased upwards."""
    metric: Metric = "AP"
    """Metric to compare, at the last epoch."""
    margin: Positive | None = None
    """Largest difference that does not matter, in units of the metric (0.005 is half a point of
    AP). An arm whose difference is statistically certain to be smaller is reported as *no relevant
    effect*. Unset: no arm is reported this way."""
    contrast: str | None = None
    """The arm of primary interest, declared before the study runs. Its p-value is not adjusted for
    the number of arms. Unset: all p-values are adjusted."""

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        # A repeated seed is the same trial again: counted twice, it would narrow the intervals.
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise ValueError(f"seeds: must not repeat a seed, got {list(self.all_seeds)}")
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """All seeds, in the order in which they run."""
        seeds = self.seeds
        return (
            tuple(range(seeds.first, seeds.first + seeds.count))
            if isinstance(seeds, SeedRange)
            else seeds
        )

    def places(self) -> dict[str, dict[str, JsonValue]]:
        """Returns every group of changes by its path in the ablation, such as `baseline`,
        `factors.review.off` and `arms.fitnet`.
        """
        levels = {
            f"factors.{factor}.{level}": changes
            for factor in self.factors
            for level, changes in self.factors[factor].items()
        }
        return {
            "baseline": self.baseline,
            **levels,
            **{f"arms.{name}": changes for name, changes in self.arms.items()},
        }


def ablation_problems(ablation: Ablation) -> Iterator[str]:
    """Yields one line for each contradiction between settings of an ablation.

    Whether the arms are valid trials is checked later (`kdr.plan.arm_checks`): that needs the
    trial.
    """
    given: dict[str, Any] = {"factors": ablation.factors, "arms": ablation.arms}
    needed, other = ("arms", "factors") if ablation.design == "arms" else ("factors", "arms")
    if not given[needed]:
        yield f"ablation.{needed}: must not be empty for the design {ablation.design}, got none"
    if given[other]:
        yield (
            f"ablation.{other}: must be empty for the design {ablation.design}, got "
            f"{', '.join(given[other])}. Remove them"
        )
    if ablation.design == "add_one_in":
        for factor, levels in ablation.factors.items():
            if len(levels) > 1:
                yield (
                    f"ablation.factors.{factor}: must have one level for add_one_in, got "
                    f"{', '.join(levels)}. Keep one, or use one_at_a_time"
                )
    for place, changes in ablation.places().items():
        # `baseline` is a level of every factor and the name of an arm, without being declared
        if place.endswith(f".{BASELINE}"):
            yield (
                f"ablation.{place}: must not be called baseline, the name of the unchanged arm. "
                "Rename it, or put the changes in ablation.baseline"
            )
        # arms are compared pairwise by seed, so an arm must not have seeds of its own
        if "seed" in changes:
            yield (
                f"ablation.{place}.seed: must be left to ablation.seeds, got {changes['seed']}. "
                "Remove it"
            )
    for index, cell in enumerate(ablation.leave_out):
        yield from _unknown(ablation, cell, f"ablation.leave_out.{index}")


def _unknown(ablation: Ablation, cell: dict[str, str], path: str) -> Iterator[str]:
    """Yields one line for each unknown factor or level of an entry of `leave_out`."""
    for factor, level in cell.items():
        if factor not in ablation.factors:
            yield f"{path}.{factor}: no such factor.{_hint(factor, ablation.factors, 'Factors')}"
        elif level not in (levels := (BASELINE, *ablation.factors[factor])):
            yield (
                f"{path}.{factor}: must be a level of this factor, got "
                f"{level!r}.{_hint(level, levels, 'Levels')}"
            )


def _hint(name: str, known: Collection[str], kind: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    suggestion = f" Did you mean '{close[0]}'?" if close else ""
    return f"{suggestion} {kind}: {', '.join(known) or 'none'}"
