import base64
import hashlib
import html.parser
import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from kdr.report.page.drawing import dots, figure
from kdr.report.page.html import Page, page_html
from kdr.report.page.parts import Fact, FigureBlock, LongText, Section, Tile
from kdr.report.study_facts import Failure
from kdr.report.tables.grid import Grid

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


class Elements(html.parser.HTMLParser):
    """Collects element names, attributes, and the texts of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


def page(text: str, **changes: Any) -> str:
    grid = Grid(
        text,
        (text, "result"),
        ((text, text), (1.5, None)),
        notes=(text,),
        bold=frozenset({(0, 0)}),
    )
    block = FigureBlock(
        "figure-a",
        text,
        text,
        figure([dots([1], [2], color="$ink", hover=[text])], height=100),
        grid,
        text,
        (text,),
    )
    failure = Failure("name", text, text, text, 1, text, text)
    section = Section(
        "part",
        text,
        (text,),
        grid,
        (block,),
        (Fact(text, (text,)),),
        (failure,),
        (LongText(text, text),),
    )
    content: dict[str, Any] = {
        "study": text,
        "kind": text,
        "question": (("Question", text), ("Cost", text)),
        "state": text,
        "tiles": (Tile(text, text, "helps"),),
        "sections": (section,),
        "written": datetime(2026, 1, 1, tzinfo=UTC),
        "command": text,
    }
    return page_html(Page(**{**content, **changes}))


def test_hostile_texts_are_escaped_everywhere() -> None:
    hostile, harmless = Elements(page(HOSTILE)), Elements(page("harmless"))
    assert hostile.names == harmless.names
    assert [name for name, _ in hostile.attributes] == [name for name, _ in harmless.attributes]
    assert not any(name.startswith("on") for name, _ in hostile.attributes)
    assert "49" not in page(HOSTILE).split("<script")[0]


def test_figures_survive_the_escaping() -> None:
    data, _, _ = Elements(page(HOSTILE)).scripts
    assert "<" not in data
    [trace] = json.loads(data)["figures"]["figure-a"]["data"]
    assert trace["hovertext"] == [
        HOSTILE.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    ]


def test_the_policy_runs_only_the_pages_own_scripts_and_loads_nothing() -> None:
    text = page("a")
    found = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert found is not None
    policy = found[1].replace("&#39;", "'")
    digests = re.findall(r"'sha256-([^']+)'", policy)
    scripts = Elements(text).scripts[1:]
    assert digests == [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    ]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_nothing_is_loaded_from_elsewhere() -> None:
    links = [
        value
        for name, value in Elements(page("a")).attributes
        if name in ("src", "href", "action", "data")
    ]
    assert links
    assert all(value is not None and value.startswith(("#", "data:")) for value in links)


def test_heading_levels_are_nested() -> None:
    levels = [int(name[1]) for name in Elements(page("a")).names if re.fullmatch("h[1-6]", name)]
    assert levels == [1, 2, 3]


@pytest.mark.parametrize(("reload_s", "expected"), [(5.0, [("data-reload-s", "5.0")]), (None, [])])
def test_only_an_unfinished_page_reloads(
    reload_s: float | None, expected: list[tuple[str, str]]
) -> None:
    attributes = Elements(page("a", reload_s=reload_s)).attributes
    assert [pair for pair in attributes if pair[0] == "data-reload-s"] == expected


def test_results_have_the_colour_of_their_verdict() -> None:
    grid = Grid(
        "t",
        ("arm", "result"),
        (
            ("a", "helps, less than the margin"),
            ("b", "undecided (3 more seeds)"),
            ("c", "reference"),
        ),
    )
    text = page("a", sections=(Section("part", "Part", table=grid),))
    assert re.findall(r'class="word (\w+)"', text) == ["helps", "undecided", "other"]
