"""`log compact`: merges the small files of the trial log."""

from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption


def command(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY", help="Study file, or name of a study; all studies if left out."
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Merge the small files of a log; safe while studies run.

    Each study gets one file per table. `kdr run` does the same at its end. The next compaction
    deletes the merged files.

    Example: kdr log compact quickstart
    """
    from kdr.cli.logged_study import study_name
    from kdr.errors import ConfigError
    from kdr.results.compact import compact
    from kdr.results.fragments import logged_studies, num_fragments
    from kdr.storage.layout import Storage

    place = Storage.at(storage)
    known = logged_studies(place)
    name = None if study is None else study_name(study)
    if name is not None and name not in known:
        raise ConfigError(
            f"study {name} is not in the log of {place.root} (studies there: "
            f"{', '.join(known) or 'none yet'}). Name its storage with --storage"
        )
    for each in known if name is None else (name,):
        before = num_fragments(place, each)
        compact(place, each)
        print(f"{each}: {before} files merged into {num_fragments(place, each)}")
