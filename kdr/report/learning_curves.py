"""Learning curves: the metric by epoch, per trial and as mean and spread per arm."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from kdr.report.arm_trials import ArmTrials
from kdr.report.formatting import spaced
from kdr.report.ranking import RankedTrial
from kdr.results.reader import Log, State

BEST = "best"
"""Name of the group that holds a search's best trial."""


@dataclass(frozen=True)
class Curve:
    """The learning curve of one trial."""

    name: str
    key: str
    state: State
    epochs: tuple[int, ...]
    """Evaluated epochs."""
    values: tuple[float, ...]
    """The metric, in the unit of the log."""

    @property
    def points(self) -> Iterable[tuple[int, float]]:
        """Epochs and their values."""
        return zip(self.epochs, self.values, strict=True)


@dataclass(frozen=True)
class Band:
    """Mean and sample standard deviation over seeds, at the epochs that all of them share."""

    num_seeds: int
    epochs: tuple[int, ...]
    means: tuple[float, ...]
    sds: tuple[float, ...]


@dataclass(frozen=True)
class CurveGroup:
    """Curves that belong together: the seeds of an arm, or trials that ended in the same way."""

    name: str
    curves: tuple[Curve, ...]
    band: Band | None = None
    """None for fewer than two seeds, and for the trials of a search."""


@dataclass(frozen=True)
class LearningCurves:
    """The curves of a figure."""

    metric: str
    groups: tuple[CurveGroup, ...]
    left_out: str | None = None
    """One sentence on the curves that are not drawn; None if all are."""

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The curves of all groups."""
        return tuple(curve for group in self.groups for curve in group.curves)

    @property
    def num_points(self) -> int:
        """Number of points over all curves."""
        return sum(len(curve.epochs) for curve in self.curves)


def arm_curves(
    log: Log, arms: Sequence[ArmTrials], metric: str, *, drawn: Sequence[str]
) -> LearningCurves:
    """Returns the curves of an ablation, one group per arm.

    The band covers the completed seeds; while there are none, all seeds that have started.

    Args:
        log: the trial log.
        arms: all arms of the study.
        metric: one of COCO's metrics.
        drawn: names of the arms to draw, in that order.
    """
    chosen = sorted(
        (arm for arm in arms if arm.name in drawn), key=lambda arm: drawn.index(arm.name)
    )
    found = epoch_values(
        log, [trial.key for arm in chosen for trial in arm.trials.values()], metric
    )
    groups = []
    for arm in chosen:
        curves = tuple(
            Curve(f"seed {seed}", trial.key, trial.state.state, *found[trial.key])
            for seed, trial in arm.trials.items()
            if trial.state is not None and trial.key in found
        )
        groups.append(CurveGroup(arm.name, curves, _band(curves)))
    left = len(arms) - len(chosen)
    what = f"{left} of {len(arms)} arms are not drawn; the table lists all." if left else None
    return LearningCurves(metric, tuple(groups), what)


def trial_curves(
    log: Log, trials: Sequence[RankedTrial], metric: str, *, most: int
) -> LearningCurves:
    """Returns the curves of a search or a single trial, grouped by how the trials ended.

    The best trial is a group of its own.

    Args:
        log: the trial log.
        trials: best first.
        metric: one of COCO's metrics.
        most: curves to draw; the best trials are taken.
    """
    started = [trial for trial in trials if trial.state.epoch]
    chosen = started[:most]
    found = epoch_values(log, [trial.key for trial in chosen], metric)
    groups: dict[str, list[Curve]] = {}
    for trial in chosen:
        if trial.key in found:
            # groups become legend entries, so there are few: the states, and the best trial
            name = BEST if trial.rank == 1 else spaced(trial.state.state)
            groups.setdefault(name, []).append(
                Curve(trial.name, trial.key, trial.state.state, *found[trial.key])
            )
    left = len(started) - len(chosen)
    what = (
        f"{left} of {len(started)} trials are not drawn: those with the lowest {metric}."
        if left
        else None
    )
    return LearningCurves(
        metric, tuple(CurveGroup(name, tuple(curves)) for name, curves in groups.items()), what
    )


def epoch_values(
    log: Log, keys: Iterable[str], metric: str
) -> dict[str, tuple[tuple[int, ...], tuple[float, ...]]]:
    """Returns by key the evaluated epochs in order, and the metric at each.

    Trials without an evaluated epoch are left out.
    """
    rows = evaluated_epochs(log, keys, metric)
    epochs, values = rows["epoch"].to_pylist(), rows[metric].to_pylist()
    return {
        key: (tuple(epochs[begin:end]), tuple(values[begin:end]))
        for key, begin, end in _runs(rows["key"])
    }


def evaluated_epochs(log: Log, keys: Iterable[str], metric: str) -> pa.Table:
    """Returns the columns key, epoch and metric of some trials, sorted by key and epoch.

    Epochs without a value are left out.
    """
    rows = log.current_epochs.select(["key", "epoch", metric])
    wanted = pc.is_in(rows["key"], value_set=pa.array(list(keys), pa.string()))
    # neither NaN nor null is a value: is_finite is False for the one and null for the other
    return rows.filter(pc.and_(wanted, pc.fill_null(pc.is_finite(rows[metric]), False)))


def _runs(keys: pa.ChunkedArray) -> Iterable[tuple[str, int, int]]:
    """Yields each key with the range of its rows; the rows are sorted by key."""
    if not len(keys):
        return []
    names = np.asarray(keys.to_pylist())
    starts = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist()]
    return zip(names[starts].tolist(), starts, [*starts[1:], len(names)], strict=True)


def _band(curves: Sequence[Curve]) -> Band | None:
    # a failed seed may have diverged, so it counts only while no seed is completed
    counted = [curve for curve in curves if curve.state == "completed"] or list(curves)
    if len(counted) < 2:
        return None
    by_epoch: list[Mapping[int, float]] = [dict(curve.points) for curve in counted]
    epochs = tuple(
        epoch for epoch in sorted(by_epoch[0]) if all(epoch in found for found in by_epoch)
    )
    if not epochs:
        return None
    values = np.array([[found[epoch] for epoch in epochs] for found in by_epoch])
    means, sds = values.mean(axis=0), values.std(axis=0, ddof=1)
    return Band(len(counted), epochs, tuple(means.tolist()), tuple(sds.tolist()))
