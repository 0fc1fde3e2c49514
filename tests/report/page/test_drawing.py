import re
from collections.abc import Mapping

import pytest

from kdr.report.page.drawing import (
    DARK,
    LIGHT,
    coloured,
    dots,
    epoch_axis,
    figure,
    lines,
    plain,
    rounded,
    shortened,
)


def luminance(color: str) -> float:
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    linear = [
        value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
        for value in (red, green, blue)
    ]
    return sum(
        weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True)
    )


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_both_palettes_have_every_role() -> None:
    assert LIGHT.keys() == DARK.keys()


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(
    "role", ["$ink", "$muted", "$helps", "$hurts", "$irrelevant", "$undecided"]
)
def test_text_colours_have_the_contrast_that_wcag_requires(
    palette: Mapping[str, str], role: str
) -> None:
    assert contrast(palette[role], palette["$surface"]) >= 4.5


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_line_colours_have_the_contrast_that_wcag_requires(palette: Mapping[str, str]) -> None:
    for role in (*(f"$series{number}" for number in range(8)), "$stopped", "$accent", "$shade4"):
        assert contrast(palette[role], palette["$surface"]) >= 3, role


def test_colours_replace_their_roles_at_any_depth() -> None:
    drawn = {"a": ["$ink", 1, None], "b": {"color": "$accent", "text": "costs $ink"}}
    assert coloured(drawn, LIGHT) == {
        "a": [LIGHT["$ink"], 1, None],
        "b": {"color": LIGHT["$accent"], "text": "costs $ink"},
    }


def test_every_colour_of_a_figure_is_a_role_of_the_palette() -> None:
    drawn = figure([dots([1], [2], color="$accent", hover=["a"])], height=100)
    roles = set(re.findall(r"'(\$\w+)'", str(drawn)))
    assert roles
    assert roles <= LIGHT.keys()


def test_user_texts_are_escaped() -> None:
    assert plain("<b>P5->P4</b> & co") == "&lt;b&gt;P5-&gt;P4&lt;/b&gt; &amp; co"
    trace = dots([1], [1], color="$ink", hover=["<a href='x'>"], name="<i>")
    assert (trace["hovertext"], trace["name"]) == (["&lt;a href='x'&gt;"], "&lt;i&gt;")


def test_lines_of_one_trace_are_separated_by_gaps() -> None:
    trace = lines([([1, 2], [3, 4]), ([1], [5])], color="$ink", hover=[["a", "b"], ["c"]], width=1)
    assert (trace["x"], trace["y"]) == ([1, 2, None, 1], [3, 4, None, 5])
    assert trace["hovertext"] == ["a", "b", None, "c"]


@pytest.mark.parametrize(("last", "step"), [(1, 1), (8, 1), (12, 2), (90, 12)])
def test_ticks_are_whole_epochs_and_not_too_many(last: int, step: int) -> None:
    assert epoch_axis(range(1, last + 1))["dtick"] == step


def test_numbers_are_rounded_to_five_digits() -> None:
    assert (rounded(1.23456789), rounded(None), rounded(0.0)) == (1.2346, None, 0.0)


def test_long_names_end_in_an_ellipsis() -> None:
    assert (shortened("baseline", 8), shortened("baseline,off", 8)) == ("baseline", "baselin…")
