"""`run`: runs a study's missing trials on Ray, then prints the results."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from collections.abc import Callable

    from kdr.config.study import Study
    from kdr.run.study_run import Outcome
    from kdr.storage.layout import Storage


def command(
    study: StudyFile,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    address: AddressOption = None,
    send_code: SendCodeOption = False,
    rerun: Annotated[bool, typer.Option("--rerun", help="Run completed trials again.")] = False,
    preflight: PreflightOption = True,
    json_: Annotated[
        bool, typer.Option("--json", help="Print events as JSON, one object per line.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Start the run in the background, print its pid and return."),
    ] = False,
) -> None:
    """Run a study's missing trials, then print the results.

    No finished trial runs twice: after an interruption, the same command resumes the study. Ctrl-C
    ends the run cleanly. SIGTERM and a closed terminal do the same, but give running epochs up to
    resources.grace_s seconds; a second SIGTERM, or Ctrl-C, ends the run at once.

    The pre-flight checks the base trial once. It ends the run if the teacher is below its stated
    AP, a loss is not finite, or a step changes the teacher. On a cluster it first checks every
    node, as `kdr doctor --address` does.

    With --detach the study runs in the background, survives the terminal, and prints to a file.

    For example:

    kdr run search_spaces/quickstart.yaml

    kdr run search_spaces/quickstart.yaml --detach
    """
    from kdr.config.study import read_study
    from kdr.storage.layout import Storage

    chosen, place = read_study(study, set_ or ()), Storage.at(storage)
    if detach:
        from kdr.cli.detached_run import start_detached

        arguments = [
            *("run", str(study), f"--storage={storage}"),
            *(f"--set={override}" for override in set_ or ()),
            *([f"--address={address}"] if address else []),
            *(["--send-code"] if send_code else []),
            *(["--rerun"] if rerun else []),
            *([] if preflight else ["--no-preflight"]),
        ]
        started = start_detached(chosen, place, arguments, storage_option=storage)
        print(started.json() if json_ else started.text())
        return
    from kdr.run.study_run import run_study

    run = partial(
        run_study,
        chosen,
        storage=place,
        address=address,
        send_code=send_code,
        rerun=rerun,
        preflight=preflight,
    )
    outcome = (_run_as_json if json_ else _run_for_people)(chosen, place, run)
    if code := exit_code(outcome):
        raise typer.Exit(code)


def exit_code(outcome: "Outcome") -> int:
    """Returns the exit code of a run."""
    if outcome.interrupted:
        return 143 if outcome.terminated else 130
    return 1 if outcome.num_failed else 0


def _run_as_json(study: "Study", storage: "Storage", run: "Callable[..., Outcome]") -> "Outcome":
    from kdr.cli.json_view import JsonView, json_output
    from kdr.plan.expand import expand_study

    num_trials = expand_study(study).num_trials
    with json_output() as out:
        view = JsonView(out, metric=study.metric)
        view.launch(study, storage, num_trials=num_trials)
        outcome = run(observer=view)
        view.done(outcome, counts=_counts(study, storage), exit_code=exit_code(outcome))
    return outcome


def _counts(study: "Study", storage: "Storage") -> dict[str, int]:
    """Returns the number of the study's trials in each state, from the log: trials that an earlier
    run completed also count.
    """
    from kdr.report.progress import study_progress
    from kdr.results.reader import read_log
    from kdr.results.schema import utc_now

    return study_progress(read_log(storage, study.study), study.study, now=utc_now()).counts


def _run_for_people(study: "Study", storage: "Storage", run: "Callable[..., Outcome]") -> "Outcome":
    from rich.console import Console

    from kdr.cli.live import LiveView
    from kdr.cli.table import print_ranking
    from kdr.report.formatting import counted

    console = Console()
    with LiveView(console, metric=study.metric, log=str(storage.log)) as view:
        outcome = run(observer=view)
    console.print()
    print_ranking(console, storage, study, study.metric)
    console.out(
        f"\n{counted(outcome.num_run, 'trial')} run in {outcome.seconds:.0f} s. Log: {storage.log}",
        highlight=False,
    )
    if outcome.interrupted:
        how = "Terminated" if outcome.terminated else "Interrupted"
        console.print(
            f"{how}. Finished work is in the log; the same command resumes.", style="magenta"
        )
    elif outcome.abort_reason:
        console.print(
            f"Aborted: {outcome.abort_reason}", style="red", markup=False, highlight=False
        )
    return outcome
