"""The page of a study as one HTML file that needs no network: text, figures, and the script that
draws them.

Every text is escaped where it is written. Should one get through, the page's own policy lets no
script run but the two whose hashes it names, and lets nothing be loaded from anywhere.
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
    """What the page of a study says."""

    study: str
    kind: str
    """Search, ablation or trial, with what is compared."""
    question: tuple[tuple[str, str], ...]
    """Labels and texts of the comment at the head of the study's file."""
    state: str
    """How far the study is, one sentence."""
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    written: datetime
    """UTC."""
    command: str
    """The command that makes this page."""
    reload_s: float | None = None
    """Seconds after which the page reloads itself; None for one that is not written again."""
    version: str = kdr.__version__

    @property
    def said(self) -> tuple[tuple[str, str], ...]:
        """What the file's comment says beside the question: what it costs, what is expected."""
        return tuple(
            (label, text) for label, text in self.question if label not in ("", "Question")
        )


def page_html(page: Page) -> str:
    """The whole file."""
    files = resources.files("kdr.report.page")
    style, script, template = (
        (files / f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js", "html")
    )
    plotly = get_plotlyjs()
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
    # nothing in a script element may look like its end, or like a comment
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _word_class(text: str) -> str:
    return next((name for start, name in _WORD_CLASSES.items() if text.startswith(start)), "other")
