"""The page of a study as one HTML file that opens without a network.

Every text is escaped by the template. As a second defence, the page's content security policy runs
only the two scripts whose hashes it lists, and loads nothing from anywhere.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from importlib import resources

import jinja2
from plotly.offline import get_plotlyjs

import kdr
from kdr.report.formatting import cell_text
from kdr.report.page.drawing import DARK, LIGHT
from kdr.report.page.parts import Section, Tile

_WORD_CLASSES = {
    "helps": "helps",
    "hurts": "hurts",
    "no relevant": "irrelevant",
    "undecided": "undecided",
}


@dataclass(frozen=True)
class Page:
    """The content of a study's page."""

    study: str
    kind: str
    """Search, ablation or single trial, with its metric."""
    question: tuple[tuple[str, str], ...]
    """(label, text) pairs from the comment at the head of the study file."""
    state: str
    """Progress of the study, one sentence."""
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    written: datetime
    """When the page was written, UTC."""
    command: str
    """The command that writes this page."""
    reload_s: float | None = None
    """Seconds after which the page reloads itself; None if it is final."""
    version: str = kdr.__version__

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:
        """The labelled remarks beside the question, such as the expected cost."""
        return tuple(
            (label, text) for label, text in self.question if label not in ("", "Question")
        )


def page_html(page: Page) -> str:
    """Returns the text of the HTML file."""
    # through importlib, so that an installed package finds its files, too
    files = resources.files("kdr.report.page")
    style, script, template = (
        (files / f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js", "html")
    )
    # almost 5 MB of the file: the price of opening without a network
    plotly = get_plotlyjs()
    # StrictUndefined: a misspelt name fails here instead of leaving a gap on the page
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"cell": cell_text, "word_class": _word_class}
    return environment.from_string(template).render(
        page=page,
        style=style,
        script=script,
        plotly=plotly,
        figures=_figures_json(page),
        digests=[_digest(plotly), _digest(script)],
    )


def _figures_json(page: Page) -> str:
    figures = {block.id: block.figure for section in page.sections for block in section.figures}
    content = {"figures": figures, "palettes": {"light": LIGHT, "dark": DARK}}
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    # inside a script element, `</script` and `<!--` would end or hide the JSON
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _word_class(text: str) -> str:
    return next((name for start, name in _WORD_CLASSES.items() if text.startswith(start)), "other")
