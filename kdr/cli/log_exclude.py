"""`log exclude`: ignores a trial's result from now on, or counts it again."""

from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption, TrialKey


def command(
    key: TrialKey,
    reason: Annotated[
        str | None, typer.Option("--reason", help="The reason, for the log.", show_default=False)
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Count an excluded trial again.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Exclude a trial's result; its study trains it again.

    The result no longer counts, and the trial restarts from scratch. Appends an event to the log
    and removes no row. The next `kdr run` of the study notices; a run in progress does not.

    For example:

    kdr log exclude KEY --reason "the disk was full during evaluation"

    kdr log exclude KEY --undo
    """
    from kdr.errors import ConfigError
    from kdr.results.exclusion import exclude, include
    from kdr.results.reader import read_log
    from kdr.results.trial_keys import find_trial
    from kdr.storage.layout import Storage

    if undo == (reason is not None):
        raise ConfigError(
            'log exclude: needs either --reason or --undo. Add --reason "why it must not count"'
        )
    place = Storage.at(storage)
    state = find_trial(read_log(place), key)
    if reason is None:
        include(place, state)
        print(f"Trial {state.key} of study {state.study} counts again")
        return
    if not reason.strip():
        raise ConfigError("--reason: must say why the trial does not count, got an empty text")
    exclude(place, state, reason.strip())
    print(
        f"Trial {state.key} of study {state.study} is excluded; it was "
        f"{state.state.replace('_', ' ')}. `kdr run` trains it again"
    )
    if state.role == "teacher":
        print(
            "It is a teacher. Its students keep their results; exclude them, too, if they must not "
            "count"
        )
