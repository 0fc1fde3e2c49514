"""Trials grouped by settings: n, mean and spread of a metric, with cautions."""

import difflib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdr.errors import ConfigError
from kdr.report.formatting import commit_text
from kdr.report.ranking import value_of
from kdr.results.flat_settings import canonical, flat_settings
from kdr.results.reader import Log, TrialState


@dataclass(frozen=True)
class SettingsRow:
    """The completed trials with one combination of settings."""

    settings: tuple[Any, ...]
    """Values of the settings; lists as JSON text."""
    values: tuple[float, ...]
    """The metric of each trial, in the order of `keys`."""
    keys: tuple[str, ...]
    """Keys of the trials in this row."""

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean of the metric."""
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for a single trial."""
        return statistics.stdev(self.values) if self.n > 1 else None


@dataclass(frozen=True)
class SettingsTable:
    """A metric by settings, one row per combination."""

    by: tuple[str, ...]
    metric: str
    rows: tuple[SettingsRow, ...]
    """Highest mean first."""
    notes: tuple[str, ...]
    """Trials that are not in the table, and cautions on reading the differences."""

    def cells(self) -> tuple[list[str], list[list[Any]]]:
        """Returns column names and rows."""
        columns = [*self.by, "n", f"mean {self.metric}", "sd", "min", "max"]
        return columns, [
            [*row.settings, row.n, row.mean, row.sd, min(row.values), max(row.values)]
            for row in self.rows
        ]


def settings_table(log: Log, study: str, by: Sequence[str], metric: str = "AP") -> SettingsTable:
    """Groups a study's completed trials by some of their settings.

    Args:
        log: the trial log.
        study: name of the study.
        by: paths of settings, such as `distill.kdr.review_links`.
        metric: the metric at the last epoch.

    Raises:
        ConfigError: if a setting or the metric does not exist, or the trials had unequal epochs.
    """
    students = [state for state in log.states_of(study).values() if state.role == "student"]
    _check_settings(students, by)
    completed = [
        state
        for state in students
        if state.state == "completed" and value_of(state, metric) is not None
    ]
    # a mean over trials of unequal length would compare lengths, not settings
    _check_budgets(completed, by)
    groups: dict[tuple[Any, ...], list[TrialState]] = {}
    for state in completed:
        settings = flat_settings(state.config)
        groups.setdefault(tuple(canonical(settings.get(path)) for path in by), []).append(state)
    rows = [
        SettingsRow(
            chosen,
            tuple(value_of(state, metric) or 0.0 for state in members),
            tuple(state.key for state in members),
        )
        for chosen, members in groups.items()
    ]
    # equal means are ordered by their settings, so that two calls agree
    rows.sort(key=lambda row: (-row.mean, str(row.settings)))
    notes = (*_left_out(students, completed, metric), *_cautions(log, study, completed))
    return SettingsTable(tuple(by), metric, tuple(rows), notes)


def _check_settings(students: Sequence[TrialState], by: Sequence[str]) -> None:
    paths = sorted({path for state in students for path in flat_settings(state.config)})
    problems = []
    for path in by:
        if path not in paths and paths:
            # `weight` finds distill.kdr.weight, and `distill.kdr` finds all its settings
            ends = [
                known
                for known in paths
                if known.endswith(f".{path}") or known.startswith(f"{path}.")
            ]
            near = ends[:5] or difflib.get_close_matches(path, paths, n=3, cutoff=0.5)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"Settings: {', '.join(paths)}"
            problems.append(f"--by: must be a setting of the trials, got {path!r}. {hint}")
    if problems:
        raise ConfigError(problems)


def _check_budgets(completed: Sequence[TrialState], by: Sequence[str]) -> None:
    epochs = [flat_settings(state.config).get("training.epochs") for state in completed]
    if len(set(epochs)) > 1 and "training.epochs" not in by:
        found = ", ".join(
            f"{epochs.count(number)} of {number}" for number in sorted(set(epochs), key=str)
        )
        raise ConfigError(
            f"--by: the trials must have equal training.epochs, got {found} epochs. Add "
            "--by training.epochs"
        )


def _left_out(
    students: Sequence[TrialState], completed: Sequence[TrialState], metric: str
) -> list[str]:
    names = {"completed": f"completed without {metric}", "stopped_early": "stopped early"}
    shown = {state.key for state in completed}
    states = [state.state for state in students if state.key not in shown]
    counts = [
        f"{states.count(state)} {names.get(state, state)}"
        for state in dict.fromkeys(sorted(states))
    ]
    return [f"Not in the table: {', '.join(counts)}."] if counts else []


def _cautions(log: Log, study: str, completed: Sequence[TrialState]) -> list[str]:
    notes = []
    # a grid covers all combinations, so its means are balanced; a sampler's are not
    sampler = _sampler(log, study)
    if sampler:
        notes.append(
            f"These trials come from a search ({sampler}). A sampler changes several settings at "
            "once and favours promising ones, so differences between rows are not effects of the "
            "settings. Use an ablation to measure effects."
        )
    for name, values in (
        (
            "commits",
            {commit_text(state.last.commit, dirty=state.last.dirty) for state in completed},
        ),
        ("data versions", {state.last.data_id for state in completed}),
    ):
        if len(values) > 1:
            notes.append(
                f"The trials come from {len(values)} {name}: {', '.join(sorted(map(str, values)))}."
            )
    return notes


def _sampler(log: Log, study: str) -> str | None:
    """Returns the sampler that chose the trials; None for a grid or an ablation."""
    search = log.study_content(study).get("search")
    if not search:
        return None
    sampler = search.get("sampler", "tpe")
    name = (
        sampler
        if isinstance(sampler, str)
        else next((kind for kind in sampler if sampler[kind] is not None), "tpe")
    )
    return None if name == "grid" else name
