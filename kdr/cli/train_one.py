"""`train`: trains one trial in the foreground, without Ray, with a progress bar."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from kdr.cli.options import DEFAULT_STORAGE, SetOption, StorageOption, StudyFile

if TYPE_CHECKING:
    from rich.console import Console

    from kdr.data.loader import Batch
    from kdr.run.driver.trial_claims import TrialClaims
    from kdr.training.fit import Track
    from kdr.training.metrics import EpochMetrics


def command(
    study: StudyFile,
    storage: StorageOption = DEFAULT_STORAGE,
    set_: SetOption = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="cuda, cuda:1 or cpu; default: a GPU if there is one."),
    ] = None,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="Train again even if the result is in the log.")
    ] = False,
) -> None:
    """Train one trial in the foreground, without Ray.

    Trains the teacher first if the study trains one. The trial is logged like those of `kdr run`,
    resumes from its last checkpoint, and keeps its weights. After SIGTERM it may finish its epoch,
    for up to resources.grace_s seconds; Ctrl-C or a second SIGTERM ends it at once.

    Example: kdr train best.yaml --set training.epochs=24
    """
    import logging

    import torch
    from rich.console import Console

    from kdr.config.study import read_study
    from kdr.data.splits import open_splits
    from kdr.results.reader import read_log
    from kdr.results.writer import LogWriter
    from kdr.run.attempt.logged_fit import LoggedTrial, has_weights, teacher_of
    from kdr.run.driver.interruption import GracePeriod, Terminated, end_by_exception
    from kdr.run.driver.sole_driver import sole_driver
    from kdr.run.driver.trial_claims import TrialClaims
    from kdr.run.engine.engine import InlineEngine
    from kdr.run.study_arms import note_arm
    from kdr.run.trial_identity import trial_maker
    from kdr.storage.layout import Storage

    chosen = read_study(study, set_ or ())
    place = Storage.at(storage).patient()
    console = Console()
    place.check_writable()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("kdr").setLevel(logging.INFO)  # reports which weights were loaded
    splits = open_splits(chosen.base.data, place)
    console.out(
        f"training: {splits.train.summary()}\nevaluation: {splits.evaluation.summary()}",
        highlight=False,
    )
    trial = trial_maker(chosen, place)(chosen.base)
    with (
        sole_driver(place, chosen.study, on_waiting=console.out) as driver,
        TrialClaims(place, chosen.study, driver) as claims,
        LogWriter(place, chosen.study) as log,
    ):
        teacher = teacher_of(trial)
        # another study may share the trial, or only its teacher
        _claim(
            {trial.key}
            | ({teacher.key} if teacher is not None and not has_weights(teacher, place) else set()),
            claims,
        )
        past = read_log(place)
        state = past.states().get(trial.key)
        # a trial that another study trained belongs to this study, too
        if trial.key not in past.keys_of(chosen.study):
            note_arm(log, chosen, trial)
        if state is not None and state.state == "completed" and not rerun:
            ap = state.metrics["AP"]
            console.out(
                f"Already trained: AP {ap}, trial {trial.key}. Train it again with --rerun",
                highlight=False,
            )
            return
        if state is not None and state.state == "cancelled" and not rerun:
            console.out(
                f"Cancelled: {state.last.reason}. Trial {trial.key}. Resume it with --rerun",
                highlight=False,
            )
            return
        uses_gpu = (
            torch.cuda.is_available() if device is None else torch.device(device).type == "cuda"
        )
        engine = InlineEngine(
            place,
            device=None if device is None else torch.device(device),
            loader_workers=chosen.resources.loader_workers,
            track=progress_bars(console),
        )
        logged = LoggedTrial(trial, log, place, num_gpus=float(uses_gpu))
        try:
            with GracePeriod(chosen.resources.grace_s, end_by_exception) as grace:
                for metrics in logged.epochs(engine):
                    _print_epoch(console, metrics, trial.config.training.epochs)
                    # the epoch is complete and saved, so no work is lost
                    if grace.has_started and not metrics.is_last:
                        grace.end_now()
        except (KeyboardInterrupt, Terminated):
            if logged.attempt and logged.reached.epoch != trial.config.training.epochs:
                logged.event("interrupted", reason="the command was interrupted")
            raise
    console.out(
        f"Weights: {place.trial(trial.key) / 'student.pt'}. Log: {place.log}", highlight=False
    )


def _claim(keys: set[str], claims: "TrialClaims") -> None:
    """Claims trials by their keys; raises BusyError if another process trains one of them."""
    from kdr.errors import BusyError

    # a claim that vanishes between the two calls is taken in the next round
    while missing := keys - claims.take(keys):
        if holders := claims.holders(missing):
            raise BusyError(
                f"the trial or its teacher is already being trained by {holders[0]}. Once that run "
                "has ended, the same command uses its result"
            )


def progress_bars(console: "Console") -> "Track":
    """Returns a function that wraps batches in a progress bar if the console is a terminal."""

    def with_bar(batches: "Iterable[Batch]", count: int, purpose: str) -> "Iterable[Batch]":
        if not console.is_terminal:
            return batches
        from rich.progress import track

        return track(
            batches, total=count, description=f"{purpose:<14}", console=console, transient=True
        )

    return with_bar


def _print_epoch(console: "Console", metrics: "EpochMetrics", epochs: int) -> None:
    found = metrics.evaluation.metrics if metrics.evaluation else {}
    scores = "".join(
        f"  {name} {found[name]:.3f}" for name in ("AP", "AP50", "AP75") if name in found
    )
    losses = "  ".join(f"{name} {value:.3f}" for name, value in metrics.weighted_losses.items())
    line = f"epoch {metrics.epoch}/{epochs}{scores}  {losses}  {metrics.images_per_s:.0f} images/s"
    console.out(line, highlight=False)
