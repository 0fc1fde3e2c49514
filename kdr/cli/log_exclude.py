"""`log exclude`: takes a trial's result out of what is known, and back."""

from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption, TrialKey


def command(
    key: TrialKey,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why; it stays in the log.", show_default=False)
    ] = None,
    undo: Annotated[
        bool, typer.Option("--undo", help="Let an excluded trial count again.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Exclude a trial: it has no rank, is in no mean, and its study trains it again from the first
    epoch.

    An event is appended to the log; no row is removed. The study's next `run` sees it; one that
    runs already does not.

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
        print(f"{state.key} of the study {state.study} counts again")
        return
    if not reason.strip():
        raise ConfigError("--reason: must say why the trial does not count, got an empty text")
    exclude(place, state, reason.strip())
    print(
        f"{state.key} of the study {state.study} is excluded; it was "
        f"{state.state.replace('_', ' ')}. `kdr run` trains it again"
    )
    if state.role == "teacher":
        print(
            "It is a teacher: the students that learnt from it stay as they are. Exclude them, "
            "too, if they must not count"
        )
