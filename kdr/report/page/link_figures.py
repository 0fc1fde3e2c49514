"""Figures of review links: links by arm, and means of a search with and without each link."""

from collections.abc import Sequence

from kdr.report.measures import measure_of
from kdr.report.page.drawing import (
    SHADE_SCALE,
    WORDS,
    Figure,
    dots,
    figure,
    label,
    plain,
    rounded,
    shortened,
)
from kdr.report.page.review_links import LinkArm, LinkMap, LinkMean

_ROW_PX = 60
_LONGEST_NAME = 32  # characters that fit on a phone beside the result


def link_map_figure(links: LinkMap) -> Figure:
    """Draws arms by links: dots where an arm agrees with the reference, squares where it switches
    a link, in the colour of its result.
    """
    cells = [
        (plain(link), row, has, has != had, arm)
        for row, arm in enumerate(links.arms)
        for link, has, had in zip(links.links, arm.links, links.arms[0].links, strict=True)
    ]
    traces = []
    for name, color, symbol, size, chosen in (
        ("on", "$muted", "circle", 11, [cell for cell in cells if cell[2] and not cell[3]]),
        (
            "off",
            "$line",
            "circle-open",
            8,
            [cell for cell in cells if not cell[2] and not cell[3]],
        ),
    ):
        hover = [f"{arm.name}: {name}" for *_, arm in chosen]
        at = [link for link, *_ in chosen], [row for _, row, *_ in chosen]
        traces.append(
            dots(
                *at,
                color=color,
                hover=hover,
                name=name,
                marker={"size": size, "symbol": symbol},
                outline=2,
            )
        )
    switched = [cell for cell in cells if cell[3]]
    marker = {
        "size": 16,
        "opacity": 1,
        "symbol": ["square" if has else "square-open" for _, _, has, _, _ in switched],
    }
    hover = [f"{arm.name}: switched {'on' if has else 'off'}" for _, _, has, _, arm in switched]
    colors = [_color(arm) for *_, arm in switched]
    traces.append(
        dots(
            [cell[0] for cell in switched],
            [cell[1] for cell in switched],
            color=colors,
            hover=hover,
            marker=marker,
            outline=3,
        )
    )
    return figure(
        # an empty trace would still be in the legend
        [trace for trace in traces if trace["x"]],
        height=_ROW_PX * len(links.arms) + 60,
        x="review link, coarse to fine",
        xaxis={
            "type": "category",
            # Plotly would order categories by first appearance, which differs from arm to arm
            "categoryarray": list(map(plain, links.links)),
            "fixedrange": True,
            "showgrid": False,
        },
        yaxis={"visible": False, "range": [len(links.arms) - 0.5, -0.75], "fixedrange": True},
        margin={"l": 12, "r": 12, "t": 8, "b": 44},
        annotations=[text for row, arm in enumerate(links.arms) for text in _texts(arm, row)],
    )


def link_means_figure(means: Sequence[LinkMean], metric: str) -> Figure:
    """Draws the mean of completed trials with and without each link."""
    scale = measure_of(metric).scale
    values = [
        [
            rounded(value * scale) if (value := mean.means[side]) is not None else None
            for mean in means
        ]
        for side in (0, 1)
    ]
    # the number of trials is part of the cell: a mean of two says little
    counts = [[len(mean.with_it) for mean in means], [len(mean.without) for mean in means]]
    texts = [
        [
            "" if value is None else f"{value:.2f}<br>n = {count}"
            for value, count in zip(row, numbers, strict=True)
        ]
        for row, numbers in zip(values, counts, strict=True)
    ]
    heat = {
        "type": "heatmap",
        "x": [plain(mean.link) for mean in means],
        "y": ["with", "without"],
        "z": values,
        "text": texts,
        "texttemplate": "%{text}",
        "hoverinfo": "x+y+z",
        "colorscale": SHADE_SCALE,
        "showscale": False,
        "xgap": 4,
        "ygap": 4,
    }
    return figure(
        [heat],
        height=210,
        x="review link, coarse to fine",
        xaxis={
            "type": "category",
            "fixedrange": True,
            "showgrid": False,
            "showline": False,
            "ticks": "",
        },
        yaxis={
            "type": "category",
            # `with` on top
            "autorange": "reversed",
            "fixedrange": True,
            "showgrid": False,
            "ticks": "",
        },
    )


def _texts(arm: LinkArm, row: int) -> list[Figure]:
    """Returns a row's labels: the arm on the left, its difference or mean on the right."""
    mean = "" if arm.mean is None else f"{arm.mean:.1f}"
    result = (
        f"{mean} {arm.text}"
        if arm.difference is None
        else f"{arm.difference:+.1f} {arm.word or ''}"
    )
    name = f"{shortened(arm.name, _LONGEST_NAME)}{' *' if arm.changes_more else ''}"
    return [
        label(name, x=0, y=row, yshift=22),
        label(result.strip(), x=1, y=row, yshift=22, right=True, color=_color(arm)),
    ]


def _color(arm: LinkArm) -> str:
    return "$muted" if arm.word is None else WORDS[arm.word]
