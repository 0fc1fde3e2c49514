"""README.md tells where everything is: its tree is held to the files."""

import re
from pathlib import Path

import pytest

import kdr

ROOT = Path(kdr.__file__).parents[1]
README = ROOT / "README.md"


def tree() -> dict[str, str]:
    """Path -> what the tree in README.md says of it; folders end with a slash, two spaces are one level."""
    [block] = re.findall(r"^```\n(orchestrate\.py .*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    entries: dict[str, str] = {}
    parents: list[str] = []
    for line in block.splitlines():
        indent, names, text = re.fullmatch(r"( *)(\S+(?:, \S+)*)(?: +(.*))?", line).groups()
        parents = parents[: len(indent) // 2]
        for name in names.split(", "):
            entries["".join(parents) + name] = text or ""
        if names.endswith("/"):
            parents.append(names)
    return entries


def files(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in ROOT.glob(pattern))


@pytest.mark.parametrize("pattern", ["kdr/**/*.py", "search_spaces/*", "benchmarks/*.py", "deploy/*", "docs/*.md"])
def test_every_file_is_in_the_tree_with_a_line_of_its_own(pattern: str) -> None:
    entries = tree()
    expected = [path for path in files(pattern) if Path(path).name != "__init__.py"]
    assert expected
    assert [path for path in expected if not entries.get(path)] == []


def test_everything_in_the_tree_is_there() -> None:
    assert [path for path in tree() if not (ROOT / path).exists()] == []


def test_links_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README.read_text())
    assert [link for link in links if not (ROOT / link).exists()] == []
