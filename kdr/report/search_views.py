"""Views of a search: each setting against the metric, early epochs against the last.

None of them shows an effect: a sampler changes several settings at once and favours promising ones.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from kdr.config.canonical import value_text
from kdr.report.learning_curves import evaluated_epochs
from kdr.report.ranking import RankedTrial
from kdr.results.reader import Log

MOST_TRIALS = 1000
"""Trials drawn in one figure; counts, means and correlations always use all of them."""
MOST_CATEGORIES = 12


@dataclass(frozen=True)
class SettingAxis:
    """One searched setting, with its value in each trial."""

    path: str
    kind: Literal["number", "members", "choice"]
    """`members`: a subset, shown by the number of its members."""
    values: tuple[float | None, ...]
    """By trial: the number, the number of members, or the index of the choice; None if it was not
    drawn."""
    names: tuple[str, ...] = ()
    """Names of the choices."""
    is_log: bool = False

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value, as log10 if `is_log`; (0, 0) without a value."""
        known = [self.on_scale(value) for value in self.values if value is not None]
        return (min(known), max(known)) if known else (0.0, 0.0)

    def on_scale(self, value: float) -> float:
        """Returns the value, or its log10 if `is_log`."""
        return math.log10(value) if self.is_log else value

    def position(self, index: int) -> float | None:
        """Returns a trial's place from 0, the lowest value, to 1, the highest."""
        value, (low, high) = self.values[index], self.range
        if value is None:
            return None
        return 0.5 if low == high else (self.on_scale(value) - low) / (high - low)


@dataclass(frozen=True)
class SearchView:
    """The trials of a search that have a value for the metric."""

    metric: str
    trials: tuple[RankedTrial, ...]
    """Best first, completed trials before those that were stopped early."""
    axes: tuple[SettingAxis, ...]
    num_trials: int
    """Trials with a value, also those that are not drawn."""


@dataclass(frozen=True)
class Fidelity:
    """How well the order of trials at each epoch predicts the final order."""

    metric: str
    last_epoch: int
    num_trials: int
    epochs: tuple[int, ...]
    correlations: tuple[float | None, ...]
    """Spearman's rank correlation of each epoch with the last; None if either is constant."""
    early_epoch: int
    """The epoch whose values are plotted against the last."""
    points: tuple[tuple[str, float, float], ...]
    """(trial, metric at the early epoch, metric at the last epoch)."""

    @property
    def at_early_epoch(self) -> float | None:
        """The correlation at the early epoch."""
        return self.correlations[self.epochs.index(self.early_epoch)]


def search_view(
    trials: Sequence[RankedTrial], metric: str, search: Mapping[str, Any], most: int = MOST_TRIALS
) -> SearchView:
    """Returns the completed and early-stopped trials of a search with their settings.

    Args:
        trials: best first.
        metric: the metric that ranks them.
        search: the `search` settings of the study file.
        most: trials to keep: half of them the best, the others evenly spaced by rank.
    """
    valued = [
        trial
        for trial in trials
        if trial.value is not None and trial.state.state in ("completed", "stopped_early")
    ]
    kept = tuple(thinned(valued, most))
    axes = tuple(
        _axis(path, parameter, kept) for path, parameter in (search.get("parameters") or {}).items()
    )
    return SearchView(
        metric,
        kept,
        # a setting whose condition never held has nothing to show
        tuple(axis for axis in axes if any(value is not None for value in axis.values)),
        len(valued),
    )


def thinned(trials: Sequence[RankedTrial], most: int) -> list[RankedTrial]:
    """Returns at most `most` trials: half from the front, the others evenly spaced."""
    if len(trials) <= most:
        return list(trials)
    first, others = list(trials[: most // 2]), trials[most // 2 :]
    picked = np.linspace(0, len(others) - 1, most - len(first)).round().astype(int)
    return first + [others[index] for index in picked]


def fidelity(
    log: Log, trials: Sequence[RankedTrial], metric: str, *, early_epoch: int | None = None
) -> Fidelity | None:
    """Returns the rank correlation of every evaluated epoch with the last.

    Only completed trials of the most common length count.

    Args:
        log: the trial log.
        trials: the trials of the study.
        metric: one of COCO's metrics.
        early_epoch: the epoch to plot against the last, if it was evaluated; the middle one by
            default.

    Returns:
        None for fewer than three such trials, or if they were evaluated only once.
    """
    completed = [trial for trial in trials if trial.rank is not None]
    lengths = [trial.state.epoch for trial in completed]
    last = max(set(lengths), key=lengths.count, default=0)
    chosen = [trial for trial in completed if trial.state.epoch == last]
    keys, epochs, values = _by_epoch(log, [trial.key for trial in chosen], metric)
    # with two trials the correlation is always 1 or -1
    if len(keys) < 3 or len(epochs) < 2 or epochs[-1] != last:
        return None
    final, earlier = values[:, -1], epochs[:-1]
    shown = early_epoch if early_epoch in earlier else earlier[(len(earlier) - 1) // 2]
    at_shown = values[:, epochs.index(shown)].tolist()
    names = {trial.key: trial.name for trial in chosen}
    points = tuple(
        (names[key], early, end)
        for key, early, end in zip(keys, at_shown, final.tolist(), strict=True)
    )
    correlations = tuple(_spearman(values[:, index], final) for index in range(len(earlier)))
    return Fidelity(metric, last, len(keys), tuple(earlier), correlations, shown, points)


def _by_epoch(log: Log, keys: Sequence[str], metric: str) -> tuple[list[str], list[int], Any]:
    """Returns keys, their common epochs, and the metric as an array [keys, epochs].

    Keys with gaps are left out.
    """
    rows = evaluated_epochs(log, keys, metric)
    if not len(rows):
        return [], [], np.empty((0, 0))
    names, key_index = np.unique(np.asarray(rows["key"].to_pylist()), return_inverse=True)
    epochs, epoch_index = np.unique(rows["epoch"].to_numpy(), return_inverse=True)
    values = np.full((len(names), len(epochs)), np.nan)
    values[key_index, epoch_index] = rows[metric].to_numpy()
    # an epoch that few trials have is dropped, such as the end of a trial that another study
    # trained for longer
    usual = np.isfinite(values).mean(axis=0) > 0.5
    whole = np.isfinite(values[:, usual]).all(axis=1)
    return names[whole].tolist(), epochs[usual].tolist(), values[whole][:, usual]


def _spearman(early: Any, final: Any) -> float | None:
    """Returns Spearman's correlation, which is Pearson's of the ranks.

    Computed without scipy.stats, whose import takes as long as everything else together.
    """
    if np.ptp(early) == 0 or np.ptp(final) == 0:
        return None
    return float(np.corrcoef(_ranks(early), _ranks(final))[0, 1])


def _ranks(values: Any) -> Any:
    """Returns the ranks of numbers; equal numbers share their mean rank."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def _axis(path: str, parameter: Mapping[str, Any], trials: Sequence[RankedTrial]) -> SettingAxis:
    drawn = [trial.parameters.get(path) for trial in trials]
    if parameter.get("subset") is not None:
        # lists are JSON texts in a ranking
        members = [len(json.loads(value)) if isinstance(value, str) else None for value in drawn]
        return SettingAxis(
            path, "members", tuple(None if count is None else float(count) for count in members)
        )
    if parameter.get("choice") is not None:
        listed = [value_text(value) for value in parameter["choice"]]
        # values that have since been removed from the file are appended
        names = list(
            dict.fromkeys([*listed, *(value_text(value) for value in drawn if value is not None)])
        )[:MOST_CATEGORIES]
        texts = [None if value is None else value_text(value) for value in drawn]
        indices = tuple(float(names.index(text)) if text in names else None for text in texts)
        return SettingAxis(path, "choice", indices, tuple(names))
    numbers = tuple(
        float(value) if isinstance(value, int | float) and math.isfinite(value) else None
        for value in drawn
    )
    # one value of 0 is enough to make a log axis impossible
    is_log = bool(parameter.get("log")) and all(value is None or value > 0 for value in numbers)
    return SettingAxis(path, "number", numbers, is_log=is_log)
