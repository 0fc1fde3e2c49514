"""`ablate-from`: a study file that asks which choices of a trial matter."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, StorageOption


def command(
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL",
            help="Study file of one trial, or the key of a search's trial, or its beginning.",
            show_default=False,
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", help="File to write to; by default it is printed.", show_default=False
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=2, help="Number of seeds of each arm.")] = 8,
    first_seed: Annotated[
        int | None,
        typer.Option(
            "--first-seed", help="The first of them; by default the first free ones from 100 on."
        ),
    ] = None,
) -> None:
    """Write a leave-one-out ablation around a trial: which of its choices matter.

    Each choice of the search is undone alone: a part of the method is switched off, another setting
    goes back to its default. The method as a whole is switched off, too, as the one comparison that
    is declared beforehand. The seeds are new, since those of the search have chosen the settings;
    and the arms report on the validation set, which the search has not seen.

    For example:

    kdr ablate-from best.yaml --export ablation.yaml

    kdr ablate-from 3f9a1c --seeds 12 > ablation.yaml
    """
    from kdr.cli.study_file import write_study_file
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
    write_study_file(text, export)
    print(f"Written to {export}. Look at it with: kdr plan {export}")
