"""Every citation of docs/method.md, in code, tests and docs, leads to one of its headings."""

import re
from pathlib import Path

import pytest

import kdr

ROOT = Path(kdr.__file__).parents[1]
PAGE = "docs/method.md"
CITATION = re.compile(r"docs/method\.md,\s+([A-Z](?:\.\d+)?)(?![\w.]*\w)")
"""The one form of a citation in code and comments: the page, a comma, the number of a heading."""
MENTION = re.compile(r"docs/method\.md|[Mm]ethod page|[Ss]ection [A-Z]\.\d")
LINK = re.compile(r"\]\((?:docs/)?(?:method\.md)?#([^)]+)\)")
HEADING = re.compile(r"^#{2,} (([A-Z](?:\.\d+)?)\.? .*)$", re.MULTILINE)


def numbers_and_anchors(page: str) -> tuple[list[str], set[str]]:
    """The headings' numbers, and the anchors GitHub makes of the headings."""
    headings = HEADING.findall(page)
    anchors = {re.sub(r"[^\w\- ]", "", text).lower().replace(" ", "-") for text, _ in headings}
    return [number for _, number in headings], anchors


def citations(text: str) -> list[str]:
    """Numbers of the headings that a file cites; a line break and `#` may be in between."""
    return CITATION.findall(re.sub(r"\n\s*#\s*", "\n", text))


def _files(*suffixes: str) -> dict[str, str]:
    folders = ("kdr", "tests", "docs", "benchmarks", "search_spaces")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    chosen = [path for path in paths if path.suffix in suffixes and path != Path(__file__)]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in chosen}


NUMBERS, ANCHORS = numbers_and_anchors((ROOT / PAGE).read_text(encoding="utf-8"))
CODE = _files(".py", ".yaml")


def test_headings_have_unique_numbers() -> None:
    assert len(NUMBERS) == len(set(NUMBERS)) == len(ANCHORS) > 10


def test_every_citation_in_code_and_tests_names_a_heading() -> None:
    cited = {(name, number) for name, text in CODE.items() for number in citations(text)}
    assert len(cited) > 10, "no citations found: has their form changed?"
    assert {(name, number) for name, number in cited if number not in NUMBERS} == set()


def test_every_mention_of_the_page_is_a_citation_in_the_one_form() -> None:
    found = {name: len(MENTION.findall(text)) for name, text in CODE.items()}
    assert found == {name: len(citations(text)) for name, text in CODE.items()}


def test_every_link_to_a_heading_of_the_page_has_its_anchor() -> None:
    pages = _files(".md")
    links = {
        (name, anchor)
        for name, text in pages.items()
        for anchor in LINK.findall(text)
        if name == PAGE or f"method.md#{anchor}" in text
    }
    assert len(links) > 5, "no links found: has their form changed?"
    assert {(name, anchor) for name, anchor in links if anchor not in ANCHORS} == set()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("see docs/method.md, F.4.", ["F.4"]),
        ("docs/method.md,\n    A.0", ["A.0"]),
        ("# in docs/method.md,\n    # F.12: why", ["F.12"]),
        ("(docs/method.md, F)", ["F"]),
        ("docs/method.md, For all", []),
        ("docs/methods.md, F.4", []),
    ],
)
def test_citations_are_found_across_lines(text: str, found: list[str]) -> None:
    assert citations(text) == found
