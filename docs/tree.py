"""Writes the generated parts of docs/architecture.md: the tree of files and the table of imports.

Run `python docs/tree.py` after a file is added, moved or renamed, or a table of
tests/test_architecture.py has changed; a test compares the page with this script's output.
"""

import ast
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("kdr", "search_spaces", "examples", "benchmarks", "deploy", "docs")
_SUFFIXES = {".py", ".ipynb", ".yaml", ".sh", ".md", ""}
_LINES = ("tests/  mirrors kdr/; `faults/` kills and starves studies, simulated and real",)


def up_to_date(page: str) -> str:
    """Returns the page with both generated parts replaced."""
    return with_tree(with_imports(page))


def tree() -> str:
    """Returns the tree as text: two spaces a level, a file's first sentence beside its name."""
    entries = [_entry(ROOT / "orchestrate.py", 0)]
    for folder in FOLDERS:
        entries += [(f"{folder}/", ""), *_below(ROOT / folder, 1)]
    width = max(len(name) for name, _ in entries) + 2
    lines = [f"{name:<{width}}{text}".rstrip() for name, text in entries]
    return "\n".join([*lines, *_LINES])


def with_tree(page: str) -> str:
    """Returns the page with its fenced tree replaced."""
    return re.sub(r"(?ms)^```\n.*?^```$", lambda _: f"```\n{tree()}\n```", page, count=1)


def imports() -> str:
    """Returns who may import whom as a Markdown table, from the tables of the architecture test."""
    tables = runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))
    rows = ["| in `kdr/` | what it is | imports | home of |", "|---|---|---|---|"]
    folders = [name for name in tables["MAY_IMPORT"] if name not in tables["FOR_ALL"]]
    for folder in sorted(folders, key=lambda name: not (ROOT / "kdr" / name).is_dir()):
        allowed = tables["MAY_IMPORT"][folder]
        path = ROOT / "kdr" / folder
        name = f"{folder}/" if path.is_dir() else f"{folder}.py"
        holds = _first_sentence(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))
        home = [package for package, homes in tables["PACKAGES"].items() if folder in homes]
        imported = [other for other in tables["MAY_IMPORT"] if other in allowed]
        rows.append(f"| `{name}` | {holds} | {', '.join(imported)} | {', '.join(home)} |")
    return "\n".join(rows)


def with_imports(page: str) -> str:
    """Returns the page with the table between its two marks replaced."""
    return re.sub(
        r"(?ms)(^<!-- imports: .*? -->\n).*?(^<!-- end of imports -->$)",
        lambda match: f"{match[1]}\n{imports()}\n\n{match[2]}",
        page,
    )


def _below(folder: Path, level: int) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if path.name == "__pycache__":
            continue
        if path.is_dir():
            _, text = _entry(path / "__init__.py", level)
            yield f"{'  ' * level}{path.name}/", text
            yield from _below(path, level + 1)
        elif path.suffix in _SUFFIXES and path.name != "__init__.py":
            yield _entry(path, level)


def _entry(path: Path, level: int) -> tuple[str, str]:
    return f"{'  ' * level}{path.name}", _first_sentence(path)


def _first_sentence(path: Path) -> str:
    """Returns a file's first sentence: of its docstring, the comment at its head, or its title."""
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        text = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
    elif path.suffix == ".ipynb":
        text = "".join(json.loads(text)["cells"][0]["source"]).partition("\n")[0].lstrip("# ")
    elif path.suffix == ".md":
        text = text.partition("\n")[0].lstrip("# ")
    else:
        comment = re.search(r"(?m)(^#(?!!).*\n)+", text)
        lines = re.sub(r"(?m)^# ?", "", comment[0]) if comment else ""
        text = re.sub(r"(?m)^yaml-language-server:.*\n", "", lines)
    return re.split(r"(?<=[.?!])(?<!al\.)\s", " ".join(text.split()))[0]


if __name__ == "__main__":
    PAGE.write_text(up_to_date(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
