"""`init`: writes a commented study file to start from."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdr.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

STARTERS = {
    "quickstart": "a search on generated shapes: 2 to 7 minutes on 2 CPU cores, no data",
    "ablation": "which parts of KDR matter, on generated shapes: about 10 minutes, no data",
    "coco": "with and without KDR on your data in COCO format: needs GPUs; four paths to fill in",
}
"""Name of a starter -> what it does and takes, in the order in which to try them."""


def command(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help=f"{', '.join(STARTERS)}; without it, the starters are listed.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; by default NAME.yaml here.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented study file to start from.

    Example: kdr init quickstart
    """
    if name is None:
        _list()
        return
    path = output or Path(f"{name}.yaml")
    _write(starter(name), path, force=force)
    print(f"Written to {path}: {STARTERS[name]}")
    if name == "coco":
        print("Fill in the four paths under `data`")
    file = shlex.quote(str(path))
    print(f"\nkdr plan {file}    # checks the file and shows what would run")
    print(f"kdr run {file}     # runs it and prints the results")


def starter(name: str) -> "Traversable":
    """Returns a starter by its name, as a file of this package.

    Raises:
        ConfigError: if there is no starter of that name.
    """
    if name not in STARTERS:
        raise ConfigError(f"NAME: must be one of {', '.join(STARTERS)}, got {name!r}")
    from importlib.resources import files

    return files("kdr") / "starters" / f"{name}.yaml"


def _list() -> None:
    width = max(map(len, STARTERS))
    for name, text in STARTERS.items():
        print(f"{name:<{width}}  {text}")
    print("\nWrite one with: kdr init quickstart")


def _write(source: "Traversable", path: Path, *, force: bool) -> None:
    # the starter's comments show commands with its file name
    text = source.read_text(encoding="utf-8").replace(source.name, shlex.quote(str(path)))
    try:
        # "x" also fails if another process creates the file meanwhile
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} already exists. Overwrite it with --force, or name another file with --output"
        ) from error
    except OSError as error:
        raise StorageError(f"--output: cannot write {path} ({error.strerror or error})") from error
