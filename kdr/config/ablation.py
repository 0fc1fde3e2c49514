"""Settings of an ablation: arms as changes of one baseline, the seeds that all arms share, and what
is compared.
"""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from kdr.config.search import Metric
from kdr.config.settings import Count, Positive, Settings

BASELINE = "baseline"
"""Name of the unchanged arm, and of the level that a factor has in it."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Changes = Annotated[dict[str, JsonValue], Field(min_length=1)]
"""New values of settings of the trial by path; a path may name a whole group, and null leaves a
group out."""
Design = Literal["leave_one_out", "add_one_in", "one_at_a_time", "factorial", "arms"]


class SeedRange(Settings):
    """Seeds in a row."""

    count: Count
    """How many."""
    first: int = 0
    """The first one."""


class Ablation(Settings):
    """Arms by seeds: what each part of the trial does to the metric. Every arm trains to its full
    length with every seed.
    """

    baseline: dict[str, JsonValue] = {}
    """Changes of `trial` that make the arm `baseline`; none: the trial itself."""
    factors: dict[Name, Annotated[dict[Name, Changes], Field(min_length=1)]] = {}
    """Factor -> level -> the settings that this level changes in the baseline, by path."""
    design: Design = "leave_one_out"
    """Which arms there are. `leave_one_out`, and `one_at_a_time`, which has the same arms: the
    baseline, and each level of each factor alone. `add_one_in`: the arm `nothing` with all factors
    changed, to which all others are compared; one arm per factor put back, such as `+review`; and
    the baseline. `factorial`: every combination of levels, the baseline's included. `arms`: the
    baseline and `arms`. But for `add_one_in`, arms are compared to the baseline."""
    arms: dict[Name, Changes] = {}
    """Arms of the design `arms`: name -> the settings that it changes in the baseline, by path."""
    leave_out: tuple[Annotated[dict[str, str], Field(min_length=1)], ...] = ()
    """Arms that are left out: those that have all the named levels, such as {review: off, weight:
    low}. `baseline` is a level of every factor."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] | SeedRange
    """Seeds that every arm is trained with, a list or {count: 8, first: 100}; `trial.seed` is not
    looked at. Take none with which the settings were chosen."""
    metric: Metric = "AP"
    """What is compared, at the last epoch."""
    margin: Positive | None = None
    """Largest difference that does not matter, in units of the metric (0.005 is half a point of
    AP): differences that are sure to lie within it are told as no relevant effect. Unset: none
    is."""
    contrast: str | None = None
    """The one arm, declared beforehand, whose comparison is not adjusted for the number of arms."""

    @model_validator(mode="after")
    def _each_seed_once(self) -> Self:
        if len(set(self.all_seeds)) < len(self.all_seeds):
            raise ValueError(f"seeds: each seed once, got {list(self.all_seeds)}")
        return self

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds, one by one, in the order in which they are run."""
        seeds = self.seeds
        return (
            tuple(range(seeds.first, seeds.first + seeds.count))
            if isinstance(seeds, SeedRange)
            else seeds
        )

    def places(self) -> dict[str, dict[str, JsonValue]]:
        """Every group of changes by its path in the ablation: `baseline`, `factors.review.off`,
        `arms.fitnet`.
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
    """What does not fit together in an ablation, one line each; the arms themselves are tried by
    `kdr.plan.designs`.
    """
    given: dict[str, Any] = {"factors": ablation.factors, "arms": ablation.arms}
    needed, other = ("arms", "factors") if ablation.design == "arms" else ("factors", "arms")
    if not given[needed]:
        yield f"ablation.{needed}: the design {ablation.design} needs at least 1, got none"
    if given[other]:
        yield (
            f"ablation.{other}: not for the design {ablation.design}, got "
            f"{', '.join(given[other])}. Leave them out"
        )
    if ablation.design == "add_one_in":
        for factor, levels in ablation.factors.items():
            if len(levels) > 1:
                yield (
                    f"ablation.factors.{factor}: add_one_in needs one level of each factor, got "
                    f"{', '.join(levels)}"
                )
    for place, changes in ablation.places().items():
        if place.endswith(f".{BASELINE}"):
            yield (
                f"ablation.{place}: this name is the unchanged one's, got changes. Choose another, "
                "or use ablation.baseline"
            )
        if "seed" in changes:
            yield (
                f"ablation.{place}.seed: all arms have the seeds of ablation.seeds, got "
                f"{changes['seed']}. Leave it out"
            )
    for index, cell in enumerate(ablation.leave_out):
        yield from _unknown(ablation, cell, f"ablation.leave_out.{index}")


def _unknown(ablation: Ablation, cell: dict[str, str], path: str) -> Iterator[str]:
    """Names of an entry of `leave_out` that are no factors or levels."""
    for factor, level in cell.items():
        if factor not in ablation.factors:
            yield f"{path}.{factor}: no such factor.{_near(factor, ablation.factors)}"
        elif level not in (levels := (BASELINE, *ablation.factors[factor])):
            yield (
                f"{path}.{factor}: must be a level of this factor, got "
                f"{level!r}.{_near(level, levels)}"
            )


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (
        f" Did you mean '{close[0]}'?" if close else ""
    ) + f" There are: {', '.join(known) or 'none'}"
