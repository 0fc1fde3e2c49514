"""The sections of a search's page: ranking, curves, settings, links, early epochs, cost."""

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
    "These trials come from a search. Its sampler changes several settings at once and favours "
    "promising ones, so no difference here is the effect of one setting. Use an ablation to "
    "measure effects."
)
SEVERAL_AT_ONCE = (
    "These figures show no effects: several settings change at once from trial to trial."
)
MOST_ROWS = 500
MOST_SETTINGS = 12


def ranking_section(
    study: str, trials: Sequence[RankedTrial], metric: str, *, is_search: bool
) -> Section:
    """Returns the section with all trials, best first; without a search, the single trial."""
    title = "Ranking" if is_search else "Trials"
    if not trials:
        return Section("table", title, ("No trial has started yet.",))
    measure = measure_of(metric)
    columns, rows = ranking_rows(trials[:MOST_ROWS], metric)
    names = short_names([*columns[:3], measure.title, *columns[4:]])
    notes = [
        f"{measure.title} at the last epoch of each trial. Trials that were stopped early had "
        "fewer epochs, so they have no rank."
    ]
    if len(trials) > MOST_ROWS:
        notes.append(
            f"{len(trials) - MOST_ROWS} more trials are not listed here; `kdr table {study}` lists "
            "all."
        )
    lead = (
        []
        if any(trial.rank is not None for trial in trials)
        else ["No trial is completed yet, so none has a rank."]
    )
    # at the top, because readers take a ranking for an answer
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
    """Returns the section with the learning curves, one line per trial."""
    curves, measure = trial_curves(log, trials, metric, most=MOST_LINES), measure_of(metric)
    if not curves.num_points:
        return Section(
            "curves", "Learning curves", (f"No epoch with a value for {metric} is logged yet.",)
        )
    ends = [
        (curve.name, spaced(curve.state), curve.epochs[-1], curve.values[-1] * measure.scale)
        for curve in curves.curves
    ]
    block = FigureBlock(
        "figure-curves",
        f"{measure.title} by epoch",
        "Each line is a trial; dotted lines were stopped early. Click a name in the legend to hide "
        "its lines.",
        trial_curves_figure(curves),
        Grid(
            "Last epoch of each curve",
            ("trial", "state", "last epoch", measure.title),
            tuple(ends[:MOST_DATA_ROWS]),
        ),
        epochs_query(study, metric),
        notes=(curves.left_out,) if curves.left_out else (),
    )
    return Section("curves", "Learning curves", figures=(block,))


def link_means_section(study: str, trials: Sequence[RankedTrial], metric: str) -> Section | None:
    """Returns the section on review links; None if all trials have the same links."""
    means, title = link_means(trials), measure_of(metric).title
    if not means:
        return None
    block = FigureBlock(
        "figure-links",
        f"Mean {title} with and without each review link (not an effect)",
        "Stronger colours are higher; n counts completed trials. Trials with and without a link "
        "also differ in other settings.",
        link_means_figure(means, metric),
        _link_grid(means, metric),
        trials_query(study, ["arm", "state", PATH, metric]),
    )
    return Section("links", "Review links", (SEVERAL_AT_ONCE,), figures=(block,))


def settings_section(
    study: str, trials: Sequence[RankedTrial], metric: str, search: Mapping[str, Any]
) -> Section:
    """Returns the section with parallel coordinates, then each setting against the metric."""
    found = search_view(trials, metric, search)
    if not found.axes:
        return Section("settings", "Settings", (f"No trial has a value for {metric} yet.",))
    names = short_names([axis.path for axis in found.axes])
    paths = [axis.path for axis in found.axes]
    query = trials_query(study, [metric, "arm", "state", *paths])
    parallel = FigureBlock(
        "figure-parallel",
        "All settings of each trial",
        "Each line is a trial and runs down through its settings to its result in the last row. "
        "Stronger lines ended higher; dotted lines were stopped early. A subset is shown by its "
        "size. At the far left, unset: the setting's condition did not hold.",
        parallel_figure(found, names),
        _settings_grid(found, names, paths),
        query,
        notes=not_drawn(min(len(found.trials), MOST_LINES), found.num_trials),
    )
    settings = [
        FigureBlock(
            f"figure-setting-{index}",
            f"{measure_of(metric).title} by {name}",
            f"{axis.path}. Points are completed trials; crosses were stopped early.",
            setting_figure(found, axis, name),
            query=query,
            is_half=True,
        )
        # each figure costs the browser about as much as the whole table
        for index, (axis, name) in enumerate(zip(found.axes[:MOST_SETTINGS], names, strict=False))
    ]
    return Section("settings", "Settings", (SEVERAL_AT_ONCE,), figures=(parallel, *settings))


def early_and_cost_section(
    log: Log, study: str, trials: Sequence[RankedTrial], metric: str, content: Mapping[str, Any]
) -> Section | None:
    """Returns the section on early epochs and on cost; None if neither has data."""
    # ASHA first stops trials at its first rung, so this is the epoch to plot
    rungs = ((content.get("search") or {}).get("stop_early") or {}).get("asha") or {}
    found = fidelity(log, trials, metric, early_epoch=rungs.get("grace_epochs"))
    nothing = (
        "Too few trials to compare early epochs with the last: three completed trials with earlier "
        "evaluations are needed."
    )
    cost = _cost_block(study, trials, metric)
    figures = (*(_fidelity_blocks(study, found) if found else ()), *([cost] if cost else ()))
    return (
        Section("early", "Early epochs and cost", () if found else (nothing,), figures=figures)
        if figures
        else None
    )


def _ranking_cell(value: Any, index: int, measure: Measure) -> Cell:
    """Returns a cell of the ranking: the metric in its unit, states in words, lists as labels."""
    if index == 3:
        return None if value is None else value * measure.scale
    if index == 2:
        return spaced(value)
    return _setting_cell(value)


def _setting_cell(value: Any) -> Cell:
    """Returns a setting's value as a cell; a list, which is JSON text in a ranking, as a label."""
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
            *(_setting_cell(trial.parameters.get(path)) for path in paths),
        )
        for trial in found.trials[:MOST_DATA_ROWS]
    )
    return Grid("Settings of the best trials", ("trial", "state", measure.title, *names), rows)


def _fidelity_blocks(study: str, found: Fidelity) -> tuple[FigureBlock, FigureBlock]:
    query, correlation = epochs_query(study, found.metric), "undefined"
    if found.at_early_epoch is not None:
        # a correlation with a constant is not defined
        correlation = f"{found.at_early_epoch:.2f}"
    by_epoch = FigureBlock(
        "figure-fidelity",
        "How well early epochs predict the final order",
        f"Spearman's rank correlation of {found.metric} at each epoch with {found.metric} at epoch "
        f"{found.last_epoch}, over {found.num_trials} completed trials. 1 means the same order, 0 "
        "no relation.",
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
        f"Points are completed trials; their rank correlation is {correlation}. Trials that were "
        "stopped early never reached the last epoch, so they are missing here and in the "
        "correlations.",
        fidelity_figure(found),
        query=query,
        is_half=True,
    )
    return by_epoch, by_trial


def _cost_block(study: str, trials: Sequence[RankedTrial], metric: str) -> FigureBlock | None:
    ended = ("completed", "stopped_early")
    # a cancelled or failed trial has a time, but no comparable result
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
        "values are not comparable.",
        cost_figure(shown, metric),
        Grid("Training time", ("trial", "state", "seconds", measure.title), rows),
        trials_query(study, ["arm", "seed", "state", "epoch", "seconds", metric]),
        notes=not_drawn(len(shown), len(timed)),
    )
