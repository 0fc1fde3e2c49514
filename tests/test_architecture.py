"""Who may import whom, and where each package is at home: two tables, read from the import
statements."""

import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import kdr

ROOT = Path(kdr.__file__).parent
FOR_ALL = {"errors", "randomness", "storage", "kdr"}
"""What every room may import; `kdr` is the package itself, with its version."""
MAY_IMPORT: dict[str, set[str]] = {
    "kdr": {"api"},
    "api": {"config", "plan", "results", "report", "training", "run", "cli"},
    "__main__": {"cli"},
    "errors": set(),
    "randomness": set(),
    "storage": set(),
    "config": set(),
    "plan": {"config"},
    "results": {"config"},
    "report": {"config", "results"},
    "data": {"config"},
    "detectors": {"config"},
    "distill": {"config"},
    "training": {"config", "data", "detectors", "distill"},
    "run": {"config", "plan", "data", "training", "results"},
    "cli": {
        "config",
        "plan",
        "results",
        "report",
        "data",
        "detectors",
        "distill",
        "training",
        "run",
    },
}
"""Room -> the rooms that it may import, beside those for all. `data`, `detectors` and `distill`
never import each other."""
DRAWER_MAY_IMPORT: dict[str, set[str]] = {
    "run.driver": {"observer"},
    "run.cluster": {"observer"},
    "run.engine": {"cluster"},
    "run.attempt": {"cluster", "engine", "launched_trial", "trial_report"},
    "run.search": {"observer", "launched_trial", "trial_report", "tune_protocols"},
    "report.tables": {"*"},
    "report.followup": {"*"},
    "report.page": {"*", "tables", "followup"},
}
"""Drawer -> what it may import of its own room: other drawers, modules outside of drawers by name,
`*` for all of these."""
AT_HOME: dict[str, set[str]] = {
    "pydantic": {"config"},
    "yaml": {"config"},
    "pyarrow": {"results", "report", "storage", "api"},  # the log is handed over as Arrow tables
    "duckdb": {"results"},
    "plotly": {"report"},
    "jinja2": {"report"},
    "torch": {"data", "detectors", "distill", "training"},
    "torchvision": {"data", "detectors"},
    "pycocotools": {"data", "training"},
    "faster_coco_eval": {"training"},
    "numpy": {"data", "training", "report"},
    "PIL": {"data"},
    "ray": {"run"},
    "optuna": {"run"},
    "typer": {"cli"},
    "packaging": {"cli"},
    "rich": {"cli", "api"},
}
"""Package -> the rooms that may import it. A command may import any, inside its function: the last
test here holds that."""
GUESTS: dict[tuple[str, str], str] = {
    (
        "kdr.run.trial_identity",
        "kdr.detectors.identity",
    ): "what weights are is part of a trial's key; read without torch",
    (
        "kdr.run.cluster.node_answers",
        "kdr.detectors.identity",
    ): "every node tells the identity of the weights that it has",
    (
        "kdr.run.cluster.node_answers",
        "torch",
    ): "every node tells how many GPUs torch can use there",
    ("kdr.run.engine.engine", "torch"): "names the device that fit() trains on",
    ("kdr.run.engine.worker", "torch"): "sets the threads of a worker",
    ("kdr.run.cluster.provenance", "torch"): "the GPU's name is a column of the log",
    ("kdr.run.attempt.trial_actor", "torch"): "sets the threads of the process that trains",
    ("kdr.report.followup.study_text", "yaml"): "a trial is exported as a study file",
    ("kdr.training.pictures", "torchvision"): "draws boxes onto images",
    ("kdr.training.pictures", "PIL"): "writes them",
}
"""Imports that the tables do not have: (module, what it imports) -> why. Each is one line of code,
not a licence for its room."""
FORBIDDEN_NAMES = {
    "train",
    "tune",
    "utils",
    "util",
    "misc",
    "helpers",
    "helper",
    "common",
    "main",
    "manager",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "kdr"


@cache
def syntax_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> frozenset[str]:
    """Dotted names that a module imports, inside functions, too; names of our own modules in
    full."""
    return frozenset(_imported(syntax_of(module)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which room is meant"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in FILES else node.module


def own(module: str) -> set[str]:
    return {name for name in imports_of(module) if name.split(".")[0] == "kdr"}


def foreign(module: str) -> set[str]:
    packages = {name.split(".")[0] for name in imports_of(module)}
    return packages - {"kdr"} - set(sys.stdlib_module_names)


modules = pytest.mark.parametrize("module", FILES)


@modules
def test_a_room_imports_only_the_rooms_that_it_may(module: str) -> None:
    assert {name for name in _outside_the_rooms(module) if (module, name) not in GUESTS} == set()


@modules
def test_a_package_is_imported_only_where_it_is_at_home(module: str) -> None:
    assert foreign(module) <= AT_HOME.keys()
    assert {
        package for package in _away_from_home(module) if (module, package) not in GUESTS
    } == set()


@pytest.mark.parametrize(("module", "imported"), GUESTS)
def test_every_guest_is_still_there(module: str, imported: str) -> None:
    assert imported in _outside_the_rooms(module) | _away_from_home(module)


def _outside_the_rooms(module: str) -> set[str]:
    room = room_of(module)
    return {
        name for name in own(module) if room_of(name) not in MAY_IMPORT[room] | FOR_ALL | {room}
    }


def _away_from_home(module: str) -> set[str]:
    room = room_of(module)
    return {
        package for package in foreign(module) if room not in AT_HOME[package] and room != "cli"
    }


@modules
def test_a_drawer_imports_of_its_room_only_what_it_may(module: str) -> None:
    drawer = drawer_of(module)
    if drawer is not None:
        assert _outside_the_drawer(module, drawer) <= _allowed_in(drawer)


def drawer_of(module: str) -> str | None:
    """`run.search` of `kdr.run.search.sampler`; None of a module outside of drawers."""
    parts = module.split(".")[1:]
    is_drawer = len(parts) == 2 and FILES[module].name == "__init__.py"
    return ".".join(parts[:2]) if len(parts) > 2 or is_drawer else None


def _outside_the_drawer(module: str, drawer: str) -> set[str]:
    """What a module imports of its own room: `drawer` for a module in a drawer, the module's name
    for another one."""
    room = room_of(module)
    ours = {name for name in own(module) if room_of(name) == room and drawer_of(name) != drawer}
    return {name.split(".")[2] for name in ours}


def _allowed_in(drawer: str) -> set[str]:
    allowed = DRAWER_MAY_IMPORT[drawer]
    room = drawer.split(".")[0]
    inside = [module for module in FILES if room_of(module) == room and module.count(".") == 2]
    loose = {module.split(".")[2] for module in inside if drawer_of(module) is None}
    return (allowed - {"*"}) | (loose if "*" in allowed else set())


def test_every_drawer_is_in_the_table() -> None:
    assert {drawer_of(module) for module in FILES} - {None} == set(DRAWER_MAY_IMPORT)


@modules
def test_every_import_of_ours_names_a_module_that_exists(module: str) -> None:
    assert own(module) <= FILES.keys()


@modules
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(syntax_of(module))
    assert docstring
    assert docstring.split("\n\n")[0].endswith((".", ":")), "it opens with sentences"


@modules
def test_no_module_has_a_name_that_says_nothing(module: str) -> None:
    assert FORBIDDEN_NAMES.isdisjoint(module.split("."))


@pytest.mark.parametrize(
    "module",
    # kdr itself holds the names of the public API
    [name for name, path in FILES.items() if path.name == "__init__.py" and name != "kdr"],
)
def test_a_package_file_holds_a_docstring_only(module: str) -> None:
    assert syntax_of(module).body[1:] == []


def test_no_module_imports_itself_over_others() -> None:
    order = graphlib.TopologicalSorter({module: own(module) - {"kdr", module} for module in FILES})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_two_rooms_import_each_other() -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        graph.setdefault(room_of(module), set()).update(map(room_of, own(module)))
    order = graphlib.TopologicalSorter(
        {room: rooms - {room, "kdr"} for room, rooms in graph.items()}
    )
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_is_in_the_table() -> None:
    assert {room_of(module) for module in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("rooms", "unwanted"),
    [
        (("config", "plan", "results", "report"), ("torch", "ray")),
        (("data.fingerprint",), ("torch", "ray")),
        pytest.param(
            ("data", "detectors", "distill", "training"), ("ray",), marks=pytest.mark.slow
        ),
        (("cli.app",), ("torch", "ray", "duckdb", "pyarrow", "scipy", "optuna")),
    ],
    ids=lambda names: "+".join(names),
)
def test_rooms_are_read_without_packages_that_they_do_not_need(
    rooms: tuple[str, ...], unwanted: tuple[str, ...], python_process: Callable[..., Any]
) -> None:
    inside = tuple(f"kdr.{room}" for room in rooms)
    wanted = [
        module
        for module in FILES
        if module in inside or module.startswith(tuple(f"{room}." for room in inside))
    ]
    assert wanted
    code = (
        "import importlib, sys\n"
        "modules, unwanted = (text.split(',') for text in sys.argv[1:])\n"
        "for module in modules: importlib.import_module(module)\n"
        "sys.exit(', '.join(name for name in unwanted if name in sys.modules) or 0)"
    )
    assert python_process(code, ",".join(wanted), ",".join(unwanted)).wait() == 0
