"""The sections of a search's page: ranking, curves, settings, review links; and of every study's,
early epochs and cost.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kdr.report.formatting import short_names, spaced, value_label
from kdr.report.learning_curves import trial_curves
from kdr.report.measures import Measure, measure_of
from kdr.report.page.link_figures import link_means_figure
from kdr.report.page.parts import (
    MOST_DATA_ROWS,
    FigureBlock,
    Section,
    epochs_query,
    not_drawn,
    trials_query,
)
from kdr.report.page.review_links import PATH, LinkMean, link_means
from kdr.report.page.search_figures import (
    MOST_LINES,
    correlation_figure,
    cost_figure,
    fidelity_figure,
    parallel_figure,
    setting_figure,
    trial_curves_figure,
)
from kdr.report.ranking import RankedTrial, ranking_rows
from kdr.report.search_views import (
    MOST_TRIALS,
    Fidelity,
    SearchView,
    fidelity,
    search_view,
    thinned,
)
from kdr.report.tables.grid import Cell, Grid
from kdr.results.reader import Log

NO_EFFECT = (
    "These are draws of a search, which changes several settings at once and favours what looked "
    "good: no difference here is an effect of one setting. An ablation of arms by seeds measures "
    "effects."
)
SEVERAL_AT_ONCE = "No effects are shown here: from trial to trial, several settings change at once."
MOST_ROWS = 500
MOST_SETTINGS = 12


def ranking_section(
    study: str, trials: Sequence[RankedTrial], metric: str, *, is_search: bool
) -> Section:
    """All trials, best first; of a study that is no search, its one trial."""
    title = "Ranking" if is_search else "Trials"
    if not trials:
        return Section("table", title, ("No trial has begun.",))
    measure = measure_of(metric)
    columns, rows = ranking_rows(trials[:MOST_ROWS], metric)
    names = short_names([*columns[:3], measure.title, *columns[4:]])
    notes = [
        f"{measure.title} at the last epoch of each trial. Trials that were stopped early had "
        "fewer epochs and have no rank."
    ]
    if len(trials) > MOST_ROWS:
        notes.append(
            f"{len(trials) - MOST_ROWS} further trials are left out: python orchestrate.py table "
            f"{study} has them all."
        )
    lead = (
        []
        if any(trial.rank is not None for trial in trials)
        else ["No trial is completed: none has a rank."]
    )
    lead += [NO_EFFECT] if is_search else []
    cells = tuple(
        tuple(_ranking_cell(value, index, measure) for index, value in enumerate(row))
        for row in rows
    )
    return Section(
        "table", title, tuple(lead), table=Grid("Best first", tuple(names), cells, tuple(notes))
    )


def trial_curves_section(
    log: Log, study: str, trials: Sequence[RankedTrial], metric: str
) -> Section:
    """The metric epoch by epoch, a line for each trial."""
    curves, measure = trial_curves(log, trials, metric, most=MOST_LINES), measure_of(metric)
    if not curves.num_points:
        return Section("curves", "Learning curves", (f"No epoch with {metric} is logged yet.",))
    ends = [
        (curve.name, spaced(curve.state), curve.epochs[-1], curve.values[-1] * measure.scale)
        for curve in curves.curves
    ]
    block = FigureBlock(
        "figure-curves",
        f"{measure.title} by epoch",
        "Each line is a trial; dotted ones were stopped early. A click on a name in the legend "
        "hides its lines.",
        trial_curves_figure(curves),
        Grid(
            "Where the curves end",
            ("trial", "state", "last epoch", measure.title),
            tuple(ends[:MOST_DATA_ROWS]),
        ),
        epochs_query(study, metric),
        notes=(curves.left_out,) if curves.left_out else (),
    )
    return Section("curves", "Learning curves", figures=(block,))


def link_means_section(study: str, trials: Sequence[RankedTrial], metric: str) -> Section | None:
    """Means with each review link and without; None where all trials have the same links."""
    means, title = link_means(trials), measure_of(metric).title
    if not means:
        return None
    block = FigureBlock(
        "figure-links",
        f"Mean {title} with each review link and without: no effect",
        "The stronger the colour, the higher; n counts completed trials. Trials with a link differ "
        "from those without it in other settings, too.",
        link_means_figure(means, metric),
        _link_grid(means, metric),
        trials_query(study, ["arm", "state", PATH, metric]),
    )
    return Section("links", "Review links", (SEVERAL_AT_ONCE,), figures=(block,))


def settings_section(
    study: str, trials: Sequence[RankedTrial], metric: str, search: Mapping[str, Any]
) -> Section:
    """Parallel coordinates, then each searched setting against the metric."""
    found = search_view(trials, metric, search)
    if not found.axes:
        return Section("settings", "Settings", (f"No trial has a value of {metric} yet.",))
    names = short_names([axis.path for axis in found.axes])
    paths = [axis.path for axis in found.axes]
    query = trials_query(study, [metric, "arm", "state", *paths])
    parallel = FigureBlock(
        "figure-parallel",
        "All settings of each trial",
        "Each line is a trial. It runs down over its settings to its result in the last row. "
        "Stronger lines ended higher, dotted ones were stopped early. Subsets are counted. A "
        "setting whose condition did not hold stands at the left: unset.",
        parallel_figure(found, names),
        _settings_grid(found, names, paths),
        query,
        notes=not_drawn(min(len(found.trials), MOST_LINES), found.num_trials),
    )
    settings = [
        FigureBlock(
            f"figure-setting-{index}",
            f"{measure_of(metric).title} by {name}",
            f"{axis.path}. Points are completed trials, crosses were stopped early.",
            setting_figure(found, axis, name),
            query=query,
            is_half=True,
        )
        for index, (axis, name) in enumerate(zip(found.axes[:MOST_SETTINGS], names, strict=False))
    ]
    return Section("settings", "Settings", (SEVERAL_AT_ONCE,), figures=(parallel, *settings))


def early_and_cost_section(
    log: Log, study: str, trials: Sequence[RankedTrial], metric: str, content: Mapping[str, Any]
) -> Section | None:
    """What early epochs tell of the last one, and what a trial costs; None where there is nothing
    of either.
    """
    rungs = ((content.get("search") or {}).get("stop_early") or {}).get("asha") or {}
    found = fidelity(log, trials, metric, early_epoch=rungs.get("grace_epochs"))
    nothing = (
        "Early epochs cannot be compared with the last one: that takes three completed trials that "
        "were evaluated before it."
    )
    cost = _cost_block(study, trials, metric)
    figures = (*(_fidelity_blocks(study, found) if found else ()), *([cost] if cost else ()))
    return (
        Section("early", "Early epochs and cost", () if found else (nothing,), figures=figures)
        if figures
        else None
    )


def _ranking_cell(value: Any, index: int, measure: Measure) -> Cell:
    """A cell of the ranking as people read it: the metric in its unit, states in words, lists
    without brackets.
    """
    if index == 3:
        return None if value is None else value * measure.scale
    if index == 2:
        return spaced(value)
    if isinstance(value, str) and value.startswith("["):
        return value_label(json.loads(value))
    return value if isinstance(value, int | float | None) else str(value)


def _link_grid(means: Sequence[LinkMean], metric: str) -> Grid:
    scale = measure_of(metric).scale
    rows = []
    for mean in means:
        with_it, without = (None if value is None else value * scale for value in mean.means)
        rows.append((mean.link, with_it, len(mean.with_it), without, len(mean.without)))
    return Grid(
        "Means of completed trials",
        ("link", "with", "n with", "without", "n without"),
        tuple(rows),
    )


def _settings_grid(found: SearchView, names: Sequence[str], paths: Sequence[str]) -> Grid:
    measure = measure_of(found.metric)
    rows = tuple(
        (
            trial.name,
            spaced(trial.state.state),
            (trial.value or 0.0) * measure.scale,
            *(trial.parameters.get(path) for path in paths),
        )
        for trial in found.trials[:MOST_DATA_ROWS]
    )
    return Grid("Settings of the best trials", ("trial", "state", measure.title, *names), rows)


def _fidelity_blocks(study: str, found: Fidelity) -> tuple[FigureBlock, FigureBlock]:
    query, told = epochs_query(study, found.metric), "undefined"
    if found.at_early_epoch is not None:
        told = f"{found.at_early_epoch:.2f}"
    by_epoch = FigureBlock(
        "figure-fidelity",
        "How well early epochs tell the final order",
        f"Spearman's rank correlation of {found.metric} at each epoch with that at epoch "
        f"{found.last_epoch}, over {found.num_trials} completed trials. 1 is the same order, 0 is "
        "none.",
        correlation_figure(found),
        Grid(
            "Rank correlation",
            ("epoch", "correlation"),
            tuple(zip(found.epochs, found.correlations, strict=True)),
        ),
        query,
        is_half=True,
    )
    by_trial = FigureBlock(
        "figure-early",
        f"Epoch {found.early_epoch} against epoch {found.last_epoch}",
        f"Points are completed trials; their rank correlation is {told}. Those that were stopped "
        "early never reached the last epoch: they are missing here, and in the correlations.",
        fidelity_figure(found),
        query=query,
        is_half=True,
    )
    return by_epoch, by_trial


def _cost_block(study: str, trials: Sequence[RankedTrial], metric: str) -> FigureBlock | None:
    ended = ("completed", "stopped_early")
    timed = [
        it
        for it in trials
        if it.state.state in ended and it.value is not None and it.state.seconds is not None
    ]
    if not timed:
        return None
    shown, measure = thinned(timed, MOST_TRIALS), measure_of(metric)
    rows = tuple(
        (it.name, spaced(it.state.state), it.state.seconds, (it.value or 0.0) * measure.scale)
        for it in shown[:MOST_DATA_ROWS]
    )
    return FigureBlock(
        "figure-cost",
        f"{measure.title} against training time",
        "Points are completed trials. Crosses were stopped early: they had fewer epochs, so their "
        "height is not comparable.",
        cost_figure(shown, metric),
        Grid("Training time", ("trial", "state", "seconds", measure.title), rows),
        trials_query(study, ["arm", "seed", "state", "epoch", "seconds", metric]),
        notes=not_drawn(len(shown), len(timed)),
    )
