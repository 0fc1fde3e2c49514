"""Figures of an ablation's arms: the forest plot, and learning curves with bands."""

from collections.abc import Sequence

from kdr.report.effects import Word
from kdr.report.learning_curves import Band, CurveGroup, LearningCurves
from kdr.report.measures import measure_of
from kdr.report.page.drawing import (
    SERIES,
    WORDS,
    Figure,
    dots,
    epoch_axis,
    figure,
    label,
    lines,
    plain,
    rounded,
    shortened,
)
from kdr.report.page.forest import Forest, ForestRow

MOST_SHOWN = 4
"""Arms whose curves are visible at first, including the reference."""
_ROW_PX = 46
# characters that fit on a phone beside the numbers, and on a line of their own
_LONG_NAME, _LONGEST_NAME = 24, 44


def forest_figure(forest: Forest) -> Figure:
    """Draws differences with intervals, one row each; small dots are single seeds."""
    places = {row.name: index for index, row in enumerate(forest.rows)}
    traces = [_seeds(row, places[row.name]) for row in forest.rows]
    traces += [
        _estimates(word, [row for row in forest.rows if row.word == word], places) for word in WORDS
    ]
    is_tall = any(len(row.name) > _LONG_NAME for row in forest.rows)
    zero = {
        "type": "line",
        "x0": 0,
        "x1": 0,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "line": {"color": "$line", "width": 1.5},
    }
    return figure(
        [trace for trace in traces if trace["x"]],
        height=(_ROW_PX + 14 * is_tall) * len(forest.rows) + 100,
        x=f"difference from {forest.reference}, {forest.title}",
        # reversed, so that the first row is on top; the ends leave room for the labels
        yaxis={"visible": False, "range": [len(forest.rows) - 0.45, -0.85], "fixedrange": True},
        margin={"l": 12, "r": 12, "t": 30, "b": 44},
        shapes=[*_margin(forest.margin), {**zero, "layer": "below"}],
        annotations=[
            text for row in forest.rows for text in _texts(row, places[row.name], below=is_tall)
        ],
        showlegend=True,
    )


def arm_curves_figure(curves: LearningCurves, reference: str) -> Figure:
    """Draws thin lines for seeds, and a thick line with a band of one sd for their mean.

    With many arms, the first are visible, and a click in the legend shows the others.
    """
    measure = measure_of(curves.metric)
    others = [group.name for group in curves.groups if group.name != reference]
    traces: list[Figure] = []
    for group in curves.groups:
        first = len(traces)
        color = (
            "$series0"
            if group.name == reference
            else f"$series{1 + others.index(group.name) % (SERIES - 1)}"
        )
        if group.band is not None:
            traces += [_band(group.band, group.name, color, measure.scale)]
        traces += [_seed_lines(group, color, measure.scale)]
        if group.band is not None:
            traces += [_mean(group.band, group.name, color, measure.scale)]
        # Plotly toggles traces of one legend group together, so all of an arm start hidden
        if group.name in others[MOST_SHOWN - 1 :]:
            traces[first:] = [{**trace, "visible": "legendonly"} for trace in traces[first:]]
    epochs = [epoch for curve in curves.curves for epoch in curve.epochs]
    return figure(
        traces, height=440, x="epoch", y=measure.title, xaxis=epoch_axis(epochs), showlegend=True
    )


def _seeds(row: ForestRow, place: int) -> Figure:
    return dots(
        [rounded(value) for _, value in row.of_seeds],
        [place] * len(row.of_seeds),
        color=WORDS[row.word],
        hover=[f"{row.name}, seed {seed}: {value:+.2f}" for seed, value in row.of_seeds],
        marker={"size": 5, "opacity": 0.45},
        showlegend=False,
    )


def _estimates(word: Word, rows: Sequence[ForestRow], places: dict[str, int]) -> Figure:
    halves = [
        0.0 if row.interval is None else (row.interval[1] - row.interval[0]) / 2 for row in rows
    ]
    # shape as well as colour, for readers who cannot tell the colours apart
    symbol = "circle-open" if word == "undecided" else "circle"
    return dots(
        [rounded(row.difference) for row in rows],
        [places[row.name] for row in rows],
        color=WORDS[word],
        hover=[f"{row.name}: {_numbers(row)} {row.text}" for row in rows],
        name=word,
        marker={"size": 11, "opacity": 1, "symbol": symbol},
        outline=2,
        error_x={
            "type": "data",
            "array": list(map(rounded, halves)),
            "color": WORDS[word],
            "thickness": 2,
            "width": 5,
        },
    )


def _texts(row: ForestRow, place: int, *, below: bool) -> list[Figure]:
    """Returns a row's labels: its name above on the left, its numbers on the right.

    `below` moves the numbers under the row, where long names leave them room.
    """
    numbers = label(
        f"{_numbers(row)} {row.word}",
        x=1,
        y=place,
        yshift=-16 if below else 16,
        right=True,
        color=WORDS[row.word],
    )
    return [label(shortened(row.name, _LONGEST_NAME), x=0, y=place, yshift=16), numbers]


def _numbers(row: ForestRow) -> str:
    around = "" if row.interval is None else f" [{row.interval[0]:+.1f}, {row.interval[1]:+.1f}]"
    return f"{row.difference:+.1f}{around}"


def _margin(margin: float | None) -> list[Figure]:
    if margin is None:
        return []
    place = {
        "type": "rect",
        "x0": -margin,
        "x1": margin,
        "yref": "paper",
        "y0": 0,
        "y1": 1,
        "layer": "below",
    }
    return [{**place, "fillcolor": "$margin", "line": {"width": 0}}]


def _seed_lines(group: CurveGroup, color: str, scale: float) -> Figure:
    texts = [
        [
            f"{group.name}, {curve.name}, epoch {epoch}: {value * scale:.2f}"
            for epoch, value in curve.points
        ]
        for curve in group.curves
    ]
    return lines(
        [(curve.epochs, _scaled(curve.values, scale)) for curve in group.curves],
        hover=texts,
        color=color,
        # without a band only the seeds' lines are drawn, so they are stronger
        width=1 if group.band else 1.8,
        opacity=0.45 if group.band else 0.9,
        name=group.name,
        mode="lines+markers",
        marker={"size": 3},
        legendgroup=plain(group.name),
        showlegend=group.band is None,
    )


def _band(band: Band, name: str, color: str, scale: float) -> Figure:
    high = _scaled([mean + sd for mean, sd in zip(band.means, band.sds, strict=True)], scale)
    low = _scaled([mean - sd for mean, sd in zip(band.means, band.sds, strict=True)], scale)
    return {
        "type": "scatter",
        "mode": "lines",
        # one closed outline: there along the upper edge, back along the lower one
        "x": [*band.epochs, *reversed(band.epochs)],
        "y": [*high, *reversed(low)],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.16,
        "line": {"width": 0, "color": color},
        "hoverinfo": "skip",
        "showlegend": False,
        "legendgroup": plain(name),
        "name": plain(name),
    }


def _mean(band: Band, name: str, color: str, scale: float) -> Figure:
    points = zip(band.epochs, band.means, band.sds, strict=True)
    head = f"{name}, mean of {band.num_seeds} seeds"
    hover = [
        f"{head}, epoch {epoch}: {mean * scale:.2f} ± {sd * scale:.2f}"
        for epoch, mean, sd in points
    ]
    curve = (band.epochs, _scaled(band.means, scale))
    return lines(
        [curve],
        color=color,
        hover=[hover],
        width=2.6,
        name=name,
        # in the legend, the mean represents the whole arm
        legendgroup=plain(name),
        showlegend=True,
    )


def _scaled(values: Sequence[float], scale: float) -> list[float | None]:
    return [rounded(value * scale) for value in values]
