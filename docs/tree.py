"""Writes the tree of docs/architecture.md: every file with its first sentence.

Run `python docs/tree.py` after a file is added, moved or renamed; a test compares the two.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("kdr", "search_spaces", "benchmarks", "deploy", "docs")
_SUFFIXES = {".py", ".yaml", ".sh", ".md", ""}
_LINES = ("tests/  mirrors kdr/; `faults/` kills and starves studies, simulated and real",)


def tree() -> str:
    """The tree as text: two spaces a level, a file's first sentence beside its name."""
    entries = [_entry(ROOT / "orchestrate.py", 0)]
    for folder in FOLDERS:
        entries += [(f"{folder}/", ""), *_below(ROOT / folder, 1)]
    width = max(len(name) for name, _ in entries) + 2
    lines = [f"{name:<{width}}{text}".rstrip() for name, text in entries]
    return "\n".join([*lines, *_LINES])


def with_tree(page: str) -> str:
    """The page with its fenced tree replaced by today's."""
    return re.sub(r"(?ms)^```\n.*?^```$", lambda _: f"```\n{tree()}\n```", page, count=1)


def _below(folder: Path, level: int) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.is_dir() and path.name != "__pycache__":
            _, text = _entry(path / "__init__.py", level)
            yield f"{'  ' * level}{path.name}/", text
            yield from _below(path, level + 1)
        elif path.suffix in _SUFFIXES and path.name != "__init__.py":
            yield _entry(path, level)


def _entry(path: Path, level: int) -> tuple[str, str]:
    return f"{'  ' * level}{path.name}", _first_sentence(path)


def _first_sentence(path: Path) -> str:
    """Of a module's docstring, of the comment at a file's head, or a page's title."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    elif path.suffix == ".md":
        text = text.partition("\n")[0].lstrip("# ")
    else:
        comment = re.search(r"(?m)(^#(?!!).*\n)+", text)
        text = re.sub(r"(?m)^# ?", "", comment[0]) if comment else ""
    return re.split(r"(?<=[.?!])\s", " ".join(text.split()))[0]


if __name__ == "__main__":
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
