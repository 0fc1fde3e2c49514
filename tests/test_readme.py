"""README.md and docs/ stay true: generated parts are current, links lead somewhere, sizes hold."""

import re
import runpy
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import kdr
from kdr.config.strict_yaml import parse_yaml
from kdr.config.study import study_from
from kdr.plan.expand import expand_study

ROOT = Path(kdr.__file__).parents[1]
README = ROOT / "README.md"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]
LINK = re.compile(r"(?<!\\)\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:href|src)=\"([^\"]+)\"")


def test_the_architecture_page_is_up_to_date() -> None:
    written = runpy.run_path(str(ROOT / "docs" / "tree.py"))
    page = written["PAGE"].read_text(encoding="utf-8")
    assert "<!-- imports:" in page
    assert written["up_to_date"](page) == page, "run: python docs/tree.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_exist(page: Path) -> None:
    assert [link for link in links(page) if not leads_somewhere(page, link)] == []


def test_the_readme_fits_its_size_and_starts_with_a_command() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.encode()) <= 8 * 1024
    assert len(text.partition("make demo")[0].split()) < 100
    assert "make test" in text


def test_the_studies_in_the_readme_are_valid() -> None:
    search, ablation = re.findall(r"(?ms)^```yaml\n(.*?)^```", README.read_text(encoding="utf-8"))
    study = parse_yaml(search, source="README.md")
    expand_study(study_from(study, folder=ROOT))
    del study["search"]
    expand_study(study_from(study | parse_yaml(ablation, source="README.md"), folder=ROOT))


def test_the_python_in_the_readme_uses_the_public_api() -> None:
    [code] = re.findall(r"(?ms)^```python\n(.*?)^```", README.read_text(encoding="utf-8"))
    compile(code, "README.md", "exec")
    named = set(re.findall(r"\bkdr\.(\w+)", code))
    assert named
    assert named <= set(kdr.__all__)


def test_the_ablation_table_in_the_readme_is_from_the_evidence() -> None:
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8").replace("\\", "")
    rows = re.findall(r"(?m)^\| (\w+) .*\| (\d\.\d .*) \|$", README.read_text(encoding="utf-8"))
    assert len(rows) == 5
    for arm, cells in rows:
        [row, *_] = [line for line in evidence.splitlines() if line.startswith(f"| {arm} ")]
        numbers = re.findall(r"[\d.]+", cells)
        assert [number for number in numbers if number not in row] == []


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- .*?([\w./-]+\.md)$", config, re.MULTILINE)
    docs = ROOT / "docs"
    pages = sorted(str(page.relative_to(docs)) for page in docs.glob("**/*.md"))
    assert sorted(listed) == pages, "new pages go into nav in mkdocs.yml"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_repository_that_a_page_names_exist(page: Path) -> None:
    folders = "kdr|tests|docs|benchmarks|search_spaces|examples|deploy"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def links(page: Path) -> Iterator[str]:
    """Yields the targets of a page's links and images, outside of code."""
    for first, second in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        link = first or second
        if not re.match(r"[a-z]+:", link):
            yield link


def leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in anchors(target.resolve()))


@cache
def anchors(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, by GitHub's rules."""
    text = re.sub(r"(?ms)^(```|~~~).*?^\1", "", page.read_text(encoding="utf-8"))
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"(?m)^#{1,6} +(.+?)(?: +#+)? *$", text):
        slug = slug_of(heading)
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def slug_of(heading: str) -> str:
    shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")


def without_code(text: str) -> str:
    text = re.sub(r"(?ms)^ *(```|~~~).*?^ *\1", "", text)
    return re.sub(r"(`+)[^`].*?\1", "", text)


@pytest.mark.parametrize(
    ("heading", "slug"),
    [
        ('Why three seeds say "undecided"', "why-three-seeds-say-undecided"),
        ("`calibrate` and [units](x.md)", "calibrate-and-units"),
        ("100 nodes, 100,000 trials", "100-nodes-100000-trials"),
        ("A - B", "a---b"),
    ],
)
def test_anchors_follow_githubs_rules(heading: str, slug: str) -> None:
    assert slug_of(heading) == slug
