"""`log cancel`: ends one trial of a running study, on any machine."""

from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption, TrialKey


def command(
    key: TrialKey,
    reason: Annotated[
        str, typer.Option("--reason", help="The reason, for the log.")
    ] = "no reason given",
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """End a running trial after its current epoch.

    Its study continues with the next trial. Works from any machine that can write to the storage. A
    cancelled trial runs again only with `kdr run --rerun`, or after `kdr log exclude`.

    Example: kdr log cancel KEY --reason "the loss does not fall"
    """
    from kdr.errors import ConfigError
    from kdr.report.formatting import duration
    from kdr.results.reader import read_log
    from kdr.results.schema import utc_now
    from kdr.results.trial_keys import find_trial
    from kdr.run.attempt.cancellation import request_cancel
    from kdr.storage.layout import Storage

    place = Storage.at(storage)
    log = read_log(place)
    state = find_trial(log, key)
    if state.state != "running":
        raise ConfigError(
            f"KEY: must be a running trial, got {state.key}, which is "
            f"{state.state.replace('_', ' ')}"
        )
    # a request in the storage, so it reaches a driver on another machine
    request_cancel(place, state.key, reason.strip() or "no reason given")
    times = [state.last.time, *log.epochs_of(state.key)["time"].to_pylist()]
    age = duration(max(0.0, (utc_now() - max(times)).total_seconds()))
    print(
        f"Trial {state.key} of study {state.study} will end after its current epoch "
        f"({state.epoch} finished)"
    )
    print(
        f"Its last row in the log is {age} old. If no process is running it any more, nothing "
        f"happens: see `kdr status {state.study}`"
    )
