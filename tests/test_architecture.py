"""Which folder may import which, and which may import each package, checked from the import
statements. docs/architecture.md is generated from the tables here."""

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
"""What every folder may import; `kdr` is the package itself, with its version."""
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
"""Folder -> the folders that it may import, beside those for all. `data`, `detectors` and `distill`
never import each other."""
SUBFOLDER_MAY_IMPORT: dict[str, set[str]] = {
    "run.driver": {"observer"},
    "run.cluster": {"observer"},
    "run.engine": {"cluster"},
    "run.attempt": {"cluster", "engine", "launched_trial", "trial_report"},
    "run.search": {"observer", "launched_trial", "trial_report", "tune_protocols"},
    "report.tables": {"*"},
    "report.followup": {"*"},
    "report.page": {"*", "tables", "followup"},
}
"""Subfolder -> what it may import of its folder: other subfolders; modules of the folder itself, by
name; `*` for all of these modules."""
PACKAGES: dict[str, set[str]] = {
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
"""Package -> the folders that may import it. A command may import any, inside its function; the
last test checks that."""
EXCEPTIONS: dict[tuple[str, str], str] = {
    (
        "kdr.run.trial_identity",
        "kdr.detectors.identity",
    ): "the identity of weights is part of a trial's key; read without torch",
    (
        "kdr.run.cluster.node_answers",
        "kdr.detectors.identity",
    ): "each node reports the identity of its weights",
    (
        "kdr.run.cluster.node_answers",
        "torch",
    ): "each node reports how many GPUs torch can use",
    ("kdr.run.engine.engine", "torch"): "names the device that fit() trains on",
    ("kdr.run.engine.worker", "torch"): "sets the threads of a worker",
    ("kdr.run.cluster.provenance", "torch"): "the GPU's name is a column of the log",
    ("kdr.run.attempt.trial_actor", "torch"): "sets the threads of the process that trains",
    ("kdr.report.followup.study_text", "yaml"): "a trial is exported as a study file",
    ("kdr.training.pictures", "torchvision"): "draws boxes onto images",
    ("kdr.training.pictures", "PIL"): "writes them",
}
"""Exceptions to the tables: (module, what it imports) -> why. Each is one line of code, not a
license for its folder."""
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


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "kdr"


@cache
def syntax_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@cache
def imports_of(module: str) -> frozenset[str]:
    """Returns the dotted names that a module imports, also inside functions; our own modules in
    full."""
    return frozenset(_imported(syntax_of(module)))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which folder is meant"
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
def test_a_folder_imports_only_what_it_may(module: str) -> None:
    assert {
        name for name in _outside_the_folders(module) if (module, name) not in EXCEPTIONS
    } == set()


@modules
def test_a_package_is_imported_only_where_it_may_be(module: str) -> None:
    assert foreign(module) <= PACKAGES.keys()
    assert {
        package for package in _packages_out_of_place(module) if (module, package) not in EXCEPTIONS
    } == set()


@pytest.mark.parametrize(("module", "imported"), EXCEPTIONS)
def test_every_exception_is_still_needed(module: str, imported: str) -> None:
    assert imported in _outside_the_folders(module) | _packages_out_of_place(module)


def _outside_the_folders(module: str) -> set[str]:
    folder = folder_of(module)
    return {
        name
        for name in own(module)
        if folder_of(name) not in MAY_IMPORT[folder] | FOR_ALL | {folder}
    }


def _packages_out_of_place(module: str) -> set[str]:
    folder = folder_of(module)
    return {
        package
        for package in foreign(module)
        if folder not in PACKAGES[package] and folder != "cli"
    }


@modules
def test_a_subfolder_imports_of_its_folder_only_what_it_may(module: str) -> None:
    subfolder = subfolder_of(module)
    if subfolder is not None:
        assert _outside_the_subfolder(module, subfolder) <= _allowed_in(subfolder)


def subfolder_of(module: str) -> str | None:
    """Returns `run.search` for `kdr.run.search.sampler`, None outside of subfolders."""
    parts = module.split(".")[1:]
    is_subfolder = len(parts) == 2 and FILES[module].name == "__init__.py"
    return ".".join(parts[:2]) if len(parts) > 2 or is_subfolder else None


def _outside_the_subfolder(module: str, subfolder: str) -> set[str]:
    """Returns what a module imports of its own folder: names of subfolders, or of modules outside
    of them."""
    folder = folder_of(module)
    ours = {
        name
        for name in own(module)
        if folder_of(name) == folder and subfolder_of(name) != subfolder
    }
    return {name.split(".")[2] for name in ours}


def _allowed_in(subfolder: str) -> set[str]:
    allowed = SUBFOLDER_MAY_IMPORT[subfolder]
    folder = subfolder.split(".")[0]
    inside = [module for module in FILES if folder_of(module) == folder and module.count(".") == 2]
    loose = {module.split(".")[2] for module in inside if subfolder_of(module) is None}
    return (allowed - {"*"}) | (loose if "*" in allowed else set())


def test_every_subfolder_is_in_the_table() -> None:
    assert {subfolder_of(module) for module in FILES} - {None} == set(SUBFOLDER_MAY_IMPORT)


@modules
def test_every_import_of_ours_exists(module: str) -> None:
    assert own(module) <= FILES.keys()


@modules
def test_every_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(syntax_of(module))
    assert docstring
    assert docstring.split("\n\n")[0].endswith((".", ":")), "it opens with sentences"


@modules
def test_no_module_has_a_vague_name(module: str) -> None:
    assert FORBIDDEN_NAMES.isdisjoint(module.split("."))


@pytest.mark.parametrize(
    "module",
    # kdr itself holds the names of the public API
    [name for name, path in FILES.items() if path.name == "__init__.py" and name != "kdr"],
)
def test_a_package_file_holds_a_docstring_only(module: str) -> None:
    assert syntax_of(module).body[1:] == []


def test_there_is_no_import_cycle_of_modules() -> None:
    order = graphlib.TopologicalSorter({module: own(module) - {"kdr", module} for module in FILES})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_there_is_no_import_cycle_of_folders() -> None:
    graph: dict[str, set[str]] = {}
    for module in FILES:
        graph.setdefault(folder_of(module), set()).update(map(folder_of, own(module)))
    order = graphlib.TopologicalSorter(
        {folder: folders - {folder, "kdr"} for folder, folders in graph.items()}
    )
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_folder_is_in_the_table() -> None:
    assert {folder_of(module) for module in FILES} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("folders", "unwanted"),
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
def test_folders_are_imported_without_packages_that_they_do_not_need(
    folders: tuple[str, ...], unwanted: tuple[str, ...], python_process: Callable[..., Any]
) -> None:
    inside = tuple(f"kdr.{folder}" for folder in folders)
    wanted = [
        module
        for module in FILES
        if module in inside or module.startswith(tuple(f"{folder}." for folder in inside))
    ]
    assert wanted
    code = (
        "import importlib, sys\n"
        "modules, unwanted = (text.split(',') for text in sys.argv[1:])\n"
        "for module in modules: importlib.import_module(module)\n"
        "sys.exit(', '.join(name for name in unwanted if name in sys.modules) or 0)"
    )
    assert python_process(code, ",".join(wanted), ",".join(unwanted)).wait() == 0
