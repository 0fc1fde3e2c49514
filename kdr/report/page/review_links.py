"""KDR's review links: effects of arms that switch links, and plain means in a search."""

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
    """One link in a search: trials with and without it. Their difference is not an effect."""

    link: str
    with_it: tuple[float, ...]
    """The metric of completed trials, in the unit of the log."""
    without: tuple[float, ...]

    @property
    def means(self) -> tuple[float | None, float | None]:
        """Means with and without the link; None without a completed trial."""
        with_it, without = (
            (statistics.fmean(values) if values else None)
            for values in (self.with_it, self.without)
        )
        return with_it, without


@dataclass(frozen=True)
class LinkArm:
    """An arm whose links differ from the reference's, or the reference itself."""

    name: str
    links: tuple[bool, ...]
    """Whether it has each link of the map."""
    mean: float | None
    """Mean in the unit of the table."""
    num_seeds: int
    difference: float | None = None
    """Arm minus reference, in the unit of the table; None for the reference, and if it is not
    compared."""
    interval: tuple[float, float] | None = None
    word: Word | None = None
    text: str = ""
    changes_more: bool = False
    """Whether other settings differ too, so that the difference is not due to the links alone."""


@dataclass(frozen=True)
class LinkMap:
    """Arms by links."""

    links: tuple[str, ...]
    """Coarse to fine, the direction in which features flow: P7->P6 first."""
    arms: tuple[LinkArm, ...]
    """The reference first."""


def link_means(trials: Sequence[RankedTrial]) -> tuple[LinkMean, ...]:
    """Returns means with and without each link, coarse links first.

    Empty if no link was both present and absent.
    """
    ranked = [trial for trial in trials if trial.rank is not None]
    # trials without KDR have no links, which is not the same as an empty list
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
    """Returns the arms of an ablation that change links; None if there are none."""
    measure = table.tested or table.measures[0]
    settings = {arm.name: arm.settings() for arm in arms.arms}
    reference = settings[table.reference]
    # arms without KDR have no links, and are not on the map
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
    """Returns whether settings other than the links differ.

    A setting that only one of the arms uses is null in the other and does not count.
    """
    # attention, for example, is null if there is no link to attend over
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
    """Returns a set of links, also from JSON text; None for a trial without KDR."""
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return frozenset(map(str, value)) if isinstance(value, list | tuple) else None


def _ordered(links: set[str] | frozenset[str]) -> list[str]:
    # 'P7->P6' sorts after 'P4->P3', so reversed is coarse to fine
    return sorted(links, reverse=True)
