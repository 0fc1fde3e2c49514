"""`ablate-from`: writes a study that asks which choices of a trial matter."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption


def command(
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL",
            help="Study file of one trial, or the key of a search's trial (6 characters or more).",
            show_default=False,
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", help="File to write; by default the study is printed.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Seeds per arm.")] = 8,
    first_seed: Annotated[
        int | None,
        typer.Option(
            "--first-seed", help="First seed; by default the first unused seed from 100 on."
        ),
    ] = None,
) -> None:
    """Write an ablation study of a trial: which of its choices matter?

    The design is leave-one-out. Each arm undoes one choice of the search: it switches off a part of
    the method, or resets a setting to its default. One more arm switches off the whole method; it
    is the contrast declared beforehand. The ablation uses new seeds, because the search chose its
    settings with the old ones, and reports on the validation set, which the search has not seen.

    For example:

    kdr ablate-from best.yaml --export ablation.yaml

    kdr ablate-from 3f9a1c --seeds 12 > ablation.yaml
    """
    from kdr.cli.output_file import write_output
    from kdr.config.study import read_study
    from kdr.report.followup.ablation_study import ablation_yaml, chosen_by_search, chosen_in_file
    from kdr.results.reader import read_log
    from kdr.results.trial_keys import find_trial
    from kdr.storage.layout import Storage

    log = read_log(Storage.at(storage))
    is_file = trial.endswith((".yaml", ".yml")) or Path(trial).is_file()
    chosen = (
        chosen_in_file(log, read_study(trial))
        if is_file
        else chosen_by_search(log, find_trial(log, trial))
    )
    text = ablation_yaml(chosen, num_seeds=seeds, first_seed=first_seed)
    if export is None:
        print(text, end="")
        return
    write_output(text, export, option="--export")
    print(f"Written to {export}. See what it would run: kdr plan {export}")
