"""Figures of a search: curves, parallel coordinates, settings, early epochs, cost."""

import math
from collections.abc import Sequence

from kdr.report.formatting import cell_text, spaced, value_label
from kdr.report.learning_curves import BEST, LearningCurves
from kdr.report.measures import measure_of
from kdr.report.page.drawing import (
    SHADES,
    Figure,
    dots,
    epoch_axis,
    figure,
    label,
    lines,
    plain,
    rounded,
)
from kdr.report.ranking import RankedTrial
from kdr.report.search_views import Fidelity, SearchView, SettingAxis

MOST_LINES = 200
"""Most trials in the learning curves and in the parallel coordinates."""
_GROUP_COLORS = {BEST: "$accent", "completed": "$shade2", "stopped early": "$stopped"}
_LANE = -0.16
"""Place of unset values, left of the lowest value."""
_AXIS_PX = 64
_BEST_SHADE = f"$shade{SHADES - 1}"


def trial_curves_figure(curves: LearningCurves) -> Figure:
    """Draws a line per trial, coloured by its state; the best stands out."""
    measure, traces = measure_of(curves.metric), []
    # Plotly draws later traces on top: the best must come last
    for group in sorted(curves.groups, key=lambda group: group.name == BEST):
        is_best = group.name == BEST
        trace = lines(
            [
                (curve.epochs, [rounded(value * measure.scale) for value in curve.values])
                for curve in group.curves
            ],
            hover=[
                [
                    f"{it.name}, epoch {epoch}: {value * measure.scale:.2f}"
                    for epoch, value in it.points
                ]
                for it in group.curves
            ],
            color=_GROUP_COLORS.get(group.name, "$undecided"),
            width=2.8 if is_best else 1.2,
            opacity=1 if is_best else 0.6,
            line={"dash": "dot" if group.name == "stopped early" else "solid"},
            name=f"best: {group.curves[0].name}" if is_best else group.name,
            mode="lines+markers",
            marker={"size": 6 if is_best else 3},
        )
        traces.append(trace)
    epochs = [epoch for curve in curves.curves for epoch in curve.epochs]
    return figure(
        traces, height=420, x="epoch", y=measure.title, xaxis=epoch_axis(epochs), showlegend=True
    )


def parallel_figure(view: SearchView, names: Sequence[str]) -> Figure:
    """Draws each trial as a line down through all settings to the metric; the best fifth stands
    out.

    Args:
        view: the search; its first `MOST_LINES` trials are drawn.
        names: names of the settings in the figure.
    """
    measure = measure_of(view.metric)
    values = tuple(
        None if trial.value is None else trial.value * measure.scale for trial in view.trials
    )
    axes = [*view.axes, SettingAxis(measure.title, "number", values)]
    titles = [*names, measure.title]
    traces = [
        lines(
            [(_positions(axes, index), list(range(len(axes)))) for index in chosen],
            hover=[_line_texts(axes, titles, index, view.trials[index].name) for index in chosen],
            color=color,
            width=2.2 if color == _BEST_SHADE else 1.2,
            opacity=0.9 if color == _BEST_SHADE else 0.5,
            line={"dash": "dot" if color == "$stopped" else "solid"},
            name="stopped early" if color == "$stopped" else "completed",
            mode="lines+markers",
            marker={"size": 5},
            # one legend entry for all shades of completed trials
            showlegend=color in ("$stopped", _BEST_SHADE),
        )
        for color, chosen in _shaded(view, most=MOST_LINES).items()
        if chosen
    ]
    # room for unset values is kept only if there are any
    has_lane = any(value is None for axis in axes for value in axis.values)
    left = _LANE if has_lane else 0.0
    return figure(
        traces,
        height=_AXIS_PX * len(axes) + 70,
        xaxis={"visible": False, "range": [left - 0.03, 1.03], "fixedrange": True},
        # reversed, so that the first setting is on top
        yaxis={"visible": False, "range": [len(axes) - 0.55, -0.65], "fixedrange": True},
        margin={"l": 8, "r": 8, "t": 30, "b": 8},
        shapes=[_rule(row) for row in range(len(axes))],
        annotations=[
            text for row, axis in enumerate(axes) for text in _axis_texts(axis, titles[row], row)
        ],
        showlegend=True,
    )


def setting_figure(view: SearchView, axis: SettingAxis, name: str) -> Figure:
    """Draws the metric by one setting, a point per trial."""
    measure = measure_of(view.metric)
    is_discrete = axis.kind != "number"
    x = [
        # choices and counts share few values, so their points would overlap
        None if value is None else _spread(value, index) if is_discrete else rounded(value)
        for index, value in enumerate(axis.values)
    ]
    hover = [
        f"{trial.name}: {name} {_value_text(axis, index)}, {_result(trial, view.metric)}"
        for index, trial in enumerate(view.trials)
    ]
    traces = _by_state(view.trials, x, hover, view.metric)
    ticks: Figure = {"type": "log", "dtick": 1} if axis.is_log else {}
    if axis.kind == "choice":
        ticks = {
            "tickvals": list(range(len(axis.names))),
            "ticktext": list(map(plain, axis.names)),
            "range": [-0.5, len(axis.names) - 0.5],
        }
    elif axis.kind == "members":
        ticks = {"dtick": 1}
    return figure(
        traces,
        height=260,
        x=name if axis.kind != "members" else f"number of {name}",
        y=measure.title,
        xaxis=ticks,
    )


def correlation_figure(fidelity: Fidelity) -> Figure:
    """Draws the rank correlation with the last epoch, by epoch."""
    hover = [
        f"epoch {epoch}: {'constant' if value is None else f'{value:.2f}'}"
        for epoch, value in zip(fidelity.epochs, fidelity.correlations, strict=True)
    ]
    curve = (fidelity.epochs, [rounded(value) for value in fidelity.correlations])
    trace = lines(
        [curve], color="$accent", hover=[hover], width=2, mode="lines+markers", marker={"size": 8}
    )
    axes = {
        "xaxis": {"tickformat": "d", "dtick": max(1, len(fidelity.epochs) // 8)},
        # the whole range of a correlation, so that studies look comparable
        "yaxis": {"range": [-1.05, 1.05], "dtick": 0.5},
    }
    return figure(
        [trace],
        height=300,
        x="epoch",
        y=f"rank correlation with epoch {fidelity.last_epoch}",
        **axes,
    )


def fidelity_figure(fidelity: Fidelity) -> Figure:
    """Draws completed trials at an early epoch against the last."""
    scale, title = measure_of(fidelity.metric).scale, measure_of(fidelity.metric).title
    points = [(name, early * scale, last * scale) for name, early, last in fidelity.points]
    hover = [
        f"{name}: {early:.2f} at epoch {fidelity.early_epoch}, {last:.2f} at the last"
        for name, early, last in points
    ]
    trace = dots(
        [rounded(early) for _, early, _ in points],
        [rounded(last) for _, _, last in points],
        color="$accent",
        hover=hover,
    )
    return figure(
        [trace],
        height=300,
        x=f"{title} at epoch {fidelity.early_epoch}",
        y=f"{title} at epoch {fidelity.last_epoch}",
    )


def cost_figure(trials: Sequence[RankedTrial], metric: str) -> Figure:
    """Draws the metric by the training time of each trial."""
    x = [rounded(trial.state.seconds) for trial in trials]
    hover = [
        f"{trial.name}: {_result(trial, metric)}, {trial.state.seconds or 0:.0f} s"
        for trial in trials
    ]
    return figure(
        _by_state(trials, x, hover, metric),
        height=340,
        x="training time (s), including evaluation",
        y=measure_of(metric).title,
        showlegend=True,
    )


def _shaded(view: SearchView, *, most: int) -> dict[str, list[int]]:
    """Returns colour -> indices of trials: completed ones in shades by rank, the best darkest."""
    shown = range(min(most, len(view.trials)))
    completed = [index for index in shown if view.trials[index].rank is not None]
    # stopped trials first, and shades in ascending order: later traces are drawn on top
    groups = {"$stopped": [index for index in shown if view.trials[index].rank is None]}
    for order, index in enumerate(reversed(completed), start=1):
        groups.setdefault(f"$shade{math.ceil(order * SHADES / len(completed)) - 1}", []).append(
            index
        )
    return groups


def _line_texts(
    axes: Sequence[SettingAxis], titles: Sequence[str], index: int, name: str
) -> list[str]:
    return [
        f"{name}: {title} {_value_text(axis, index)}"
        for axis, title in zip(axes, titles, strict=True)
    ]


def _by_state(
    trials: Sequence[RankedTrial], x: Sequence[float | None], hover: Sequence[str], metric: str
) -> list[Figure]:
    """Returns traces of completed trials as dots, and of early-stopped ones as crosses."""
    scale = measure_of(metric).scale
    found = []
    for is_ranked, name, color, symbol in (
        (True, "completed", "$accent", "circle"),
        (False, "stopped early", "$stopped", "x-thin-open"),
    ):
        chosen = [
            i
            for i, trial in enumerate(trials)
            if (trial.rank is not None) == is_ranked and x[i] is not None
        ]
        values = [trials[i].value for i in chosen]
        y = [None if value is None else rounded(value * scale) for value in values]
        # an open cross is drawn by its outline alone
        marker, outline = {"symbol": symbol, "size": 9}, 2 if symbol.endswith("open") else 0
        found.append(
            dots(
                [x[i] for i in chosen],
                y,
                color=color,
                hover=[hover[i] for i in chosen],
                name=name,
                marker=marker,
                outline=outline,
            )
        )
    return [trace for trace in found if trace["x"]]


def _result(trial: RankedTrial, metric: str) -> str:
    measure = measure_of(metric)
    value = "none" if trial.value is None else f"{trial.value * measure.scale:.2f}"
    return f"{metric} {value} ({spaced(trial.state.state)}, {trial.state.epoch} epochs)"


def _positions(axes: Sequence[SettingAxis], index: int) -> list[float]:
    return [_LANE if (place := axis.position(index)) is None else round(place, 4) for axis in axes]


def _value_text(axis: SettingAxis, index: int) -> str:
    value = axis.values[index]
    if value is None:
        return "unset"
    return axis.names[int(value)] if axis.kind == "choice" else cell_text(value)


def _spread(value: float, index: int) -> float:
    """Returns a discrete value shifted a little, so that equal values do not overlap."""
    # multiples of the golden ratio spread evenly, and the same trial always lands in one place
    return round(value + (index * 0.618034 % 1 - 0.5) * 0.3, 3)


def _rule(row: int) -> Figure:
    return {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "y0": row,
        "y1": row,
        "line": {"color": "$line", "width": 1},
        "layer": "below",
    }


def _axis_texts(axis: SettingAxis, title: str, row: int) -> list[Figure]:
    """Returns labels: the setting's name above its axis, and values below."""
    low, high = axis.range
    ends = [10**end if axis.is_log else end for end in (low, high)]
    if axis.kind == "choice":
        used = sorted({int(value) for value in axis.values if value is not None})
        marks = [
            (0.5 if low == high else (value - low) / (high - low), axis.names[value])
            for value in used
        ]
    else:
        marks = (
            [(0.5, value_label(ends[0]))]
            if low == high
            else [(0.0, value_label(ends[0])), (1.0, value_label(ends[1]))]
        )
    if None in axis.values:
        marks.append((_LANE, "unset"))
    on_axis: Figure = {"xref": "x", "bgcolor": "$surface", "borderpad": 1}
    small: Figure = {**on_axis, "font": {"size": 11, "color": "$muted"}, "yshift": -12}
    # texts at the ends must not leave the figure
    anchors = ["left" if place <= 0 else "right" if place >= 1 else "center" for place, _ in marks]
    texts = [
        label(text, x=place, y=row, xanchor=anchor, **small)
        for (place, text), anchor in zip(marks, anchors, strict=True)
    ]
    return [label(title, x=0, y=row, yshift=13, **on_axis), *texts]
