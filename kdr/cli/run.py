"""`run`: what is missing of a study, on Ray; then what it has found."""

from typing import Annotated

import typer

from kdr.cli.options import (
    DEFAULT_STORAGE,
    AddressOption,
    PreflightOption,
    SendCodeOption,
    SetOption,
    StorageOption,
    StudyFile,
)


def command(
    study: StudyFile,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    address: AddressOption = None,
    send_code: SendCodeOption = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Run trials again whose results are in the log.")
    ] = False,
    preflight: PreflightOption = True,
) -> None:
    """Run what is missing of a study, then print its ranking, or the table of its arms.

    Before the first trial the study's base trial is looked at, once: a teacher that misses its
    stated AP, losses that are not finite, or a step that changes the teacher end the run. On a
    cluster every node is asked first, as `doctor --address` does.

    Finished trials are never run twice. Ctrl-C ends cleanly and keeps what is done; the same
    command continues. SIGTERM and a closed terminal do the same, after up to resources.grace_s
    seconds for the epochs that run; a second SIGTERM, or Ctrl-C, ends at once.

    Example: kdr run search_spaces/quickstart.yaml
    """
    from rich.console import Console

    from kdr.cli.live import LiveView
    from kdr.cli.table import print_ranking
    from kdr.config.study import read_study
    from kdr.run.study_run import run_study
    from kdr.storage.layout import Storage

    chosen = read_study(study, set_ or ())
    place = Storage.at(storage)
    console = Console()
    with LiveView(console, metric=chosen.metric, log=str(place.log)) as view:
        outcome = run_study(
            chosen,
            storage=place,
            observer=view,
            address=address,
            send_code=send_code,
            rerun=rerun,
            preflight=preflight,
        )
    console.print()
    print_ranking(console, place, chosen, chosen.metric)
    console.out(
        f"\n{outcome.num_run} trials run in {outcome.seconds:.0f} s. The log: {place.log}",
        highlight=False,
    )
    if outcome.interrupted:
        how = "Terminated" if outcome.terminated else "Interrupted"
        console.print(
            f"{how}: what was finished is kept. The same command continues.", style="magenta"
        )
        raise typer.Exit(143 if outcome.terminated else 130)
    if outcome.abort_reason:
        console.print(
            f"Stopped: {outcome.abort_reason}", style="red", markup=False, highlight=False
        )
    if outcome.num_failed:
        raise typer.Exit(1)
