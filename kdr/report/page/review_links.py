"""What the review links of KDR go with: in an ablation the differences of arms that change links,
in a search means alone.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdr.report.ablation_table import AblationRow, AblationTable
from kdr.report.arm_trials import LoggedArms
from kdr.report.effects import Word
from kdr.report.measures import Measure
from kdr.report.ranking import RankedTrial
from kdr.report.tables.ablation_grid import result
from kdr.results.flat_settings import flat_settings

PATH = "distill.kdr.review_links"


@dataclass(frozen=True)
class LinkMean:
    """One link in a search: the trials that have it, and those that do not. Their difference is no
    effect.
    """

    link: str
    with_it: tuple[float, ...]
    """The metric of completed trials, as the log has it."""
    without: tuple[float, ...]

    @property
    def means(self) -> tuple[float | None, float | None]:
        """With the link and without; None where no completed trial is."""
        with_it, without = (
            (statistics.fmean(values) if values else None)
            for values in (self.with_it, self.without)
        )
        return with_it, without


@dataclass(frozen=True)
class LinkArm:
    """An arm that has other links than the reference, or the reference itself."""

    name: str
    links: tuple[bool, ...]
    """Whether it has each link."""
    mean: float | None
    """In the unit of the table."""
    num_seeds: int
    difference: float | None = None
    """To the reference, in the unit of the table; None for the reference, and where nothing is
    compared."""
    interval: tuple[float, float] | None = None
    word: Word | None = None
    text: str = ""
    changes_more: bool = False
    """Whether other settings differ from the reference, too, so that the difference is not that of
    the links alone."""


@dataclass(frozen=True)
class LinkMap:
    """Arms by links."""

    links: tuple[str, ...]
    """Coarse to fine, as features flow: P7->P6 first."""
    arms: tuple[LinkArm, ...]
    """The reference first."""


def link_means(trials: Sequence[RankedTrial]) -> tuple[LinkMean, ...]:
    """Means of a search with each link and without, coarse links first; empty where no link was
    both drawn and left out.
    """
    ranked = [trial for trial in trials if trial.rank is not None]
    completed = [
        (links, trial.value)
        for trial in ranked
        if (links := _links(trial.state.config)) is not None
    ]
    names = _ordered({link for links, _ in completed for link in links})
    found = []
    for name in names:
        with_it = tuple(value for links, value in completed if name in links and value is not None)
        without = tuple(
            value for links, value in completed if name not in links and value is not None
        )
        found.append(LinkMean(name, with_it, without))
    return tuple(found) if any(mean.with_it and mean.without for mean in found) else ()


def link_map(table: AblationTable, arms: LoggedArms) -> LinkMap | None:
    """The arms of an ablation that change links; None where no arm does."""
    measure = table.tested or table.measures[0]
    settings = {arm.name: arm.settings() for arm in arms.arms}
    reference = settings[table.reference]
    of_arm = {
        name: links
        for name, own in settings.items()
        if (links := _as_links(own.get(PATH))) is not None
    }
    base = of_arm.get(table.reference)
    changed = [row for row in table.rows if base is not None and of_arm.get(row.name, base) != base]
    if base is None or not changed:
        return None
    names = _ordered({link for row in changed for link in of_arm[row.name]} | base)
    shown = [next(row for row in table.rows if row.name == table.reference), *changed]
    drawn = [
        _link_arm(
            row,
            measure,
            tuple(name in of_arm[row.name] for name in names),
            _differs_elsewhere(settings[row.name], reference),
        )
        for row in shown
    ]
    return LinkMap(tuple(names), tuple(drawn))


def _differs_elsewhere(settings: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Whether settings beside the links differ; what only one of two arms makes use of is null in
    the other, and no change.
    """
    values = ((settings.get(path), reference.get(path)) for path in settings if path != PATH)
    return any(own != other for own, other in values if own is not None and other is not None)


def _link_arm(
    row: AblationRow, measure: Measure, links: tuple[bool, ...], changes_more: bool
) -> LinkArm:
    summary = row.summaries[measure.name]
    effect = row.effect_on(measure.name)
    scale = measure.scale
    interval = effect.interval if effect is not None else None
    return LinkArm(
        row.name,
        links,
        None if summary.mean is None else summary.mean * scale,
        summary.n,
        None if effect is None else effect.difference * scale,
        None if interval is None else (interval[0] * scale, interval[1] * scale),
        row.verdict.word if row.verdict is not None else None,
        result(row),
        changes_more,
    )


def _links(config: str) -> frozenset[str] | None:
    return _as_links(flat_settings(config).get(PATH))


def _as_links(value: Any) -> frozenset[str] | None:
    """A set of links, also from JSON text; None for a trial without the method."""
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return frozenset(map(str, value)) if isinstance(value, list | tuple) else None


def _ordered(links: set[str] | frozenset[str]) -> list[str]:
    return sorted(links, reverse=True)
