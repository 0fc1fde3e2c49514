"""Shared parts of all figures: Plotly's JSON, with roles such as `$ink` for colours.

A figure is a plain {"data", "layout"} in Plotly's schema
(https://plotly.com/javascript/reference), except for its colours. They are roles, which `coloured`
and the page's script replace with those of a palette, so one figure serves light and dark schemes.
Every text from users passes through `plain`, because Plotly interprets some HTML tags in any text.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from kdr.report.effects import Word

Figure = dict[str, Any]
"""{"data": traces, "layout": layout} of Plotly."""

SERIES = 8
"""Number of colours for arms, `$series0` to `$series7`; the first is the reference's."""
SHADES = 5
"""Number of steps from low to high, `$shade0` to `$shade4`."""
SHADE_SCALE = [[step / (SHADES - 1), f"$shade{step}"] for step in range(SHADES)]
"""The same steps as a Plotly colour scale."""
WORDS: Mapping[Word, str] = {
    "helps": "$helps",
    "hurts": "$hurts",
    "no relevant effect": "$irrelevant",
    "undecided": "$undecided",
}
"""Verdict -> colour."""
LIGHT: Mapping[str, str] = {
    "$ink": "#1d2733",
    "$muted": "#5c6875",
    "$grid": "#e6e9ed",
    "$line": "#b9c1cb",
    "$surface": "#ffffff",
    "$accent": "#1f5fa8",
    "$helps": "#15795a",
    "$hurts": "#b93a24",
    "$irrelevant": "#4d5967",
    "$undecided": "#6b7684",
    "$margin": "rgba(77, 89, 103, 0.10)",
    "$stopped": "#b07a1a",
    **{
        f"$shade{i}": c
        for i, c in enumerate(("#c3d3e6", "#98b7da", "#6796c9", "#3872b3", "#123f75"))
    },
    **{
        f"$series{i}": c
        for i, c in enumerate(
            (
                "#4d5967",
                "#1f5fa8",
                "#c2571a",
                "#15795a",
                "#8346a3",
                "#a3780a",
                "#b8336a",
                "#0c7d96",
            )
        )
    },
}
DARK: Mapping[str, str] = {
    "$ink": "#e4e8ee",
    "$muted": "#a0abb8",
    "$grid": "#2a323d",
    "$line": "#4a5564",
    "$surface": "#171c23",
    "$accent": "#79b0ec",
    "$helps": "#54c79b",
    "$hurts": "#f28b75",
    "$irrelevant": "#b4bfcc",
    "$undecided": "#93a0b0",
    "$margin": "rgba(180, 191, 204, 0.13)",
    "$stopped": "#dcae56",
    **{
        f"$shade{i}": c
        for i, c in enumerate(("#2f4259", "#3d5f86", "#4f80b5", "#6ba4dd", "#b4d7fb"))
    },
    **{
        f"$series{i}": c
        for i, c in enumerate(
            (
                "#b4bfcc",
                "#79b0ec",
                "#f0985f",
                "#54c79b",
                "#c595e0",
                "#ddb84c",
                "#f083ac",
                "#5cc3da",
            )
        )
    },
}


def coloured(figure: Any, palette: Mapping[str, str]) -> Any:
    """Returns a figure with its roles replaced by the colours of a palette."""
    if isinstance(figure, Mapping):
        return {name: coloured(value, palette) for name, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [coloured(value, palette) for value in figure]
    return palette.get(figure, figure) if isinstance(figure, str) else figure


def plain(text: object) -> str:
    """Escapes a text so that Plotly shows it literally."""
    return html.escape(str(text), quote=False)


def shortened(name: str, most: int) -> str:
    """Cuts a name to at most `most` characters, with an ellipsis; the figure's table has it in
    full.
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


def figure(
    traces: Sequence[Figure], *, height: int, x: str = "", y: str = "", **layout: Any
) -> Figure:
    """Builds a figure with the page's layout.

    Args:
        traces: Plotly's traces.
        height: in pixels; the width follows the page.
        x: title of the x axis.
        y: title of the y axis.
        layout: further layout settings; those of an axis extend the page's.
    """
    axes = {
        "xaxis": {**_axis(x), **layout.pop("xaxis", {})},
        "yaxis": {**_axis(y), **layout.pop("yaxis", {})},
    }
    page = {
        "height": height,
        "margin": {"l": 52, "r": 16, "t": 16, "b": 44},
        # transparent: the page's own background serves both schemes
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {
            "color": "$ink",
            "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif",
            "size": 13,
        },
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "$surface",
            "bordercolor": "$line",
            "font": {"color": "$ink"},
            "align": "left",
        },
        "legend": {
            "orientation": "h",
            "x": 0,
            # 8 px above the plot at any height; 80 px are the margins
            "y": 1 + 8 / (height - 80),
            "yanchor": "bottom",
            "font": {"size": 12},
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "$line", "activecolor": "$ink"},
        "showlegend": False,
    }
    return {"data": list(traces), "layout": {**page, **axes, **layout}}


def dots(
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    color: str | Sequence[str],
    hover: Sequence[str],
    name: str = "",
    outline: float = 0,
    **trace: Any,
) -> Figure:
    """Builds a trace of points with an outline `outline` pixels wide; hover texts are escaped."""
    marker = {
        "color": color,
        "size": 8,
        "opacity": 0.85,
        "line": {"color": color, "width": outline},
        **trace.pop("marker", {}),
    }
    shown = [plain(text) for text in hover]
    base = {"type": "scatter", "mode": "markers", "x": list(x), "y": list(y), "marker": marker}
    return {**base, "hoverinfo": "text", "hovertext": shown, "name": plain(name), **trace}


def lines(
    curves: Sequence[tuple[Sequence[Any], Sequence[Any]]],
    *,
    color: str,
    hover: Sequence[Sequence[str]],
    width: float,
    **trace: Any,
) -> Figure:
    """Builds one trace of several lines, each as (x, y); `hover` has one text per point.

    One trace instead of one per line keeps the legend short and Plotly fast.
    """
    x: list[Any] = []
    y: list[Any] = []
    texts: list[str | None] = []
    for (own_x, own_y), own_texts in zip(curves, hover, strict=True):
        # None breaks the line, so that the next one starts apart from it
        x += [*own_x, None]
        y += [*own_y, None]
        texts += [*map(plain, own_texts), None]
    line = {"color": color, "width": width, **trace.pop("line", {})}
    base = {
        "type": "scatter",
        "mode": "lines",
        "x": x[:-1],
        "y": y[:-1],
        "line": line,
        "connectgaps": False,
    }
    name = plain(trace.pop("name", ""))
    return {**base, "hoverinfo": "text", "hovertext": texts[:-1], "name": name, **trace}


def label(
    text: str, *, x: float, y: Any, right: bool = False, color: str = "$ink", **annotation: Any
) -> Figure:
    """Builds a text at x, a fraction of the figure's width, and y in units of the y axis."""
    return {
        "xref": "paper",
        "yref": "y",
        "x": x,
        "y": y,
        "text": plain(text),
        "showarrow": False,
        "xanchor": "right" if right else "left",
        "font": {"size": 12, "color": color},
        **annotation,
    }


def epoch_axis(epochs: Sequence[int]) -> Figure:
    """Builds an axis with ticks at whole epochs, at most about eight."""
    last = max(epochs, default=1)
    return {
        "dtick": max(1, math.ceil(last / 8)),
        # a margin, so that the first and last points are not cut off
        "range": [min(epochs, default=0) - 0.3, last + 0.3],
    }


def rounded(value: float | None, digits: int = 5) -> float | None:
    """Rounds to `digits` significant digits, which makes the file smaller and looks the same."""
    return None if value is None else float(f"{value:.{digits}g}")


def _axis(title: str) -> Figure:
    return {
        "title": {"text": plain(title), "font": {"size": 12, "color": "$muted"}, "standoff": 8},
        "gridcolor": "$grid",
        "linecolor": "$line",
        "zeroline": False,
        "automargin": True,
        "tickfont": {"size": 12, "color": "$muted"},
    }
