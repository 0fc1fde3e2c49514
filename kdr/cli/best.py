"""`best`: shows the best completed trial of a study, and exports it as a study file."""

from pathlib import Path
from typing import Annotated

import typer

from kdr.cli.logged_study import MetricOption, StudyInLog
from kdr.cli.options import DEFAULT_STORAGE, JsonOption, StorageOption
from kdr.storage.layout import Storage


def command(
    study: StudyInLog,
    storage: StorageOption = DEFAULT_STORAGE,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export",
            help="Write a study file of this one trial, for `kdr train`.",
            show_default=False,
        ),
    ] = None,
    metric: MetricOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the best completed trial, or export it as a study.

    The best trial has the highest metric at its last epoch.

    The exported study spells out every setting. It drops the search and its held-out images: it
    trains on all training images and is evaluated on the validation set.

    Example: kdr best quickstart --export best.yaml
    """
    from kdr.cli.logged_study import read_logged_study
    from kdr.cli.output import plain_table
    from kdr.cli.output_file import write_output
    from kdr.report.followup.best_study import best_study_yaml
    from kdr.report.formatting import json_text
    from kdr.report.ranking import best_trial, ranking, searched_metric

    log, name = read_logged_study(study, storage)
    metric = metric or searched_metric(log, name)
    trial = best_trial(log, name, metric)
    if export is not None:
        write_output(best_study_yaml(log, name, trial, metric), export, option="--export")
    facts = {
        "study": name,
        "trial": trial.name,
        "key": trial.key,
        metric: trial.value,
        "epochs": trial.state.epoch,
        "seconds": trial.state.seconds,
        "weights": _kept(Storage.at(storage), trial.state.last.weights),
    }
    if json_:
        print(json_text({**facts, "parameters": trial.parameters}))
        return
    num_completed = sum(other.rank is not None for other in ranking(log, name, metric))
    print(f"Best of {num_completed} completed trials by {metric}")
    print(plain_table(["", ""], [*facts.items(), *trial.parameters.items()]).strip("\n"))
    if export is not None:
        print(f"Written to {export}. Train it with: kdr train {export}")


def _kept(storage: Storage, weights: str | None) -> str | None:
    """Returns the file of the student's weights; None if it was not kept."""
    return str(storage.root / weights) if weights and (storage.root / weights).exists() else None
