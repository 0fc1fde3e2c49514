"""One vocabulary: no word of the banned list, and no public name with two meanings."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

import kdr

ROOT = Path(kdr.__file__).parents[1]
BANNED = {
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "again, from scratch",
    r"unheard": "ignore",
    r"hopeless": "abort",
    r"(?<![`.])alike": "equal, the same, in the same way",
    r"whoever": "the process that, the caller, users who",
    r"at hand": "available",
    r"com(e|es|ing) further": "makes progress",
    r"go(es|ing)? on": "resumes, continues",
    r"(is|are|be|was|were|been) told": "is notified, receives",
    r"tells": "reports, says, passes",
    r"lies?": "is stored, is, are",
    r"looked at": "checked, read",
    r"ones? (that|which|who)": "a noun, or a shorter clause",
    r"begun": "started",
    r"of use to nobody": "useless",
}
"""Words of the house that no reader uses -> what to write instead."""
EXEMPT = ("kdr/config/renamed.py", "tests/config/test_renamed.py")
"""These name old settings, whatever their words."""
SUFFIXES = (".py", ".md", ".yaml", ".toml", ".html", ".js", ".sh")
FOLDERS = ("kdr", "tests", "docs", "search_spaces", "benchmarks", "deploy", "examples")


def _files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    found = [*ROOT.glob("*.md"), *ROOT.glob("*.py"), *inside]
    return sorted(path for path in found if path.suffix in SUFFIXES and path != Path(__file__))


FILES = {str(path.relative_to(ROOT)): path for path in _files()}
BANNED_PATTERN = re.compile(rf"\b({'|'.join(BANNED)})\b", re.IGNORECASE)


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith(EXEMPT)])
def test_no_banned_word_is_used(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if _is_banned(line)] == []


def _is_banned(line: str) -> bool:
    # docs/settings.md names the old names of settings
    return BANNED_PATTERN.search(re.sub(r"Formerly `\w+`", "", line)) is not None


def test_no_public_name_has_two_meanings() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in FILES.items():
        # the public API gives what is inside under the same names
        if name.startswith("kdr/") and name != "kdr/api.py":
            for node in _definitions(path):
                places[node.name].append(name)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def _definitions(path: Path) -> list[ast.ClassDef | ast.FunctionDef]:
    if path.suffix != ".py":
        return []
    body = ast.parse(path.read_text(encoding="utf-8")).body
    found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    # every command module names its function `command`: one convention, not sixteen meanings
    return [node for node in found if not node.name.startswith("_") and node.name != "command"]
