"""README.md and docs/ stay true: the tree is today's, and links lead to files."""

import re
import runpy
from pathlib import Path

import pytest

import kdr

ROOT = Path(kdr.__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]


def test_the_tree_is_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    page = written["PAGE"].read_text(encoding="utf-8")
    assert written["with_tree"](page) == page, "python docs/tree.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []
