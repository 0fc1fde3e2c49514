"""Measures of a trial: COCO's metrics, AP per class, time, memory, parameters, extras.

AP is shown in percent, as in papers (39.8); the log and SQL have it in [0, 1].
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kdr.errors import ConfigError
from kdr.results.reader import Log, TrialState
from kdr.results.schema import METRICS

_GIB = 1 / 2**30


@dataclass(frozen=True)
class Measure:
    """One number per trial, with its unit and scale."""

    name: str
    """As passed to `--metric`: `AP75`, `AP/<class>`, `s/epoch`, `memory`, `parameters`,
    `extras/<name>`."""
    unit: str = ""
    """Unit in the head of a column."""
    scale: float = 1.0
    """Factor from the logged value to the shown value."""
    is_ap: bool = False
    """Whether higher is better, so that an arm can help or hurt."""

    @property
    def title(self) -> str:
        """Name with its unit, such as `AP (%)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def measure_of(name: str) -> Measure:
    """Returns a measure by its name.

    Raises:
        ConfigError: if there is no such measure.
    """
    # only an AP has a direction; more seconds or memory are neither better nor worse for an arm
    if name in METRICS or name.startswith("AP/"):
        return Measure(name, "%", 100.0, is_ap=True)
    if name == "s/epoch":
        return Measure(name)
    if name == "memory":
        return Measure(name, "GiB", _GIB)
    if name == "parameters":
        return Measure(name, "M", 1e-6)
    if name.startswith("extras/"):
        return Measure(name)
    raise ConfigError(
        f"--metric: must be one of {', '.join(METRICS)}, AP/<class>, s/epoch, memory, parameters, "
        f"extras/<name>, got {name!r}. s/epoch excludes evaluation, memory is the peak on the "
        "GPU, parameters are the student's, extras are values that methods log"
    )


def measured(
    log: Log, states: Mapping[str, TrialState], measures: Sequence[Measure]
) -> dict[str, dict[str, float]]:
    """Returns measure -> key -> value, for the trials that have a value.

    A metric is that of the last evaluation; seconds are the mean over epochs, memory the maximum.

    Raises:
        ConfigError: if no completed trial has a value for a measure.
    """
    epochs = log.current_epochs.filter(
        pc.is_in(log.current_epochs["key"], value_set=pa.array(list(states), pa.string()))
    )
    found = {measure.name: _values(measure.name, states, epochs) for measure in measures}
    for name, values in found.items():
        if (
            # a column may be empty, but a class or an extra that no trial logs is a typo
            "/" in name
            and not values
            and any(state.state == "completed" for state in states.values())
        ):
            raise ConfigError(
                f"--metric: must be a number that these trials log, got {name!r}."
                f"{_known(name, epochs)}"
            )
    return found


def _values(name: str, states: Mapping[str, TrialState], epochs: pa.Table) -> dict[str, float]:
    if name in METRICS:
        logged = {key: state.metrics[name] for key, state in states.items()}
        return {
            key: value
            for key, value in logged.items()
            if value is not None and not math.isnan(value)
        }
    if name == "s/epoch":
        return _grouped(epochs, "seconds", "mean")
    if name == "memory":
        return _grouped(epochs, "peak_memory_bytes", "max")
    # the number of parameters is logged as an extra
    kind, _, wanted = ("extras", "/", name) if name == "parameters" else name.partition("/")
    last = last_maps(epochs, "ap_per_class" if kind == "AP" else "extras")
    return {
        key: numbers[wanted]
        for key, numbers in last.items()
        if not math.isnan(numbers.get(wanted, math.nan))
    }


def last_maps(epochs: pa.Table, column: str) -> dict[str, dict[str, float]]:
    """Returns by key the last value of a column of maps; epochs are sorted by key and epoch."""
    rows = epochs.filter(pc.is_valid(epochs[column])).select(["key", column])
    # Arrow has no `last` for maps: the largest row number of each key stands in for it
    index = pa.array(range(len(rows)))
    last = (
        rows.select(["key"])
        .append_column("row", index)
        .group_by("key")
        .aggregate([("row", "max")])["row_max"]
    )
    return {row["key"]: row[column] for row in rows.take(last).to_pylist(maps_as_pydicts="lossy")}


def _grouped(epochs: pa.Table, column: str, how: str) -> dict[str, float]:
    rows = epochs.group_by("key").aggregate([(column, how)])
    values = zip(rows["key"].to_pylist(), rows[f"{column}_{how}"].to_pylist(), strict=True)
    return {key: float(value) for key, value in values if value is not None}


def _known(name: str, epochs: pa.Table) -> str:
    if name == "s/epoch":
        return ""
    prefix = name.partition("/")[0]
    maps: Iterable[Mapping[str, Any]] = last_maps(
        epochs, "ap_per_class" if prefix == "AP" else "extras"
    ).values()
    names = sorted({f"{prefix}/{known}" for numbers in maps for known in numbers})
    return f" Logged: {', '.join(names)}" if names else " None is logged"
