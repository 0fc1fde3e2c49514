"""A search driven as Tune does it, without Ray: for the tests of searcher and sampler."""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial, TrialConfig
from kdr.plan.keys import make_trial
from kdr.plan.known import KnownTrial
from kdr.plan.points import Point
from kdr.run.search.searcher import StudySearcher

EPOCHS = 4
LINKS = ["P4->P3", "P5->P4", "P6->P5", "P7->P6"]
WEIGHT = {"distill.kdr.weight": {"float": [0.1, 50], "log": True}}
CELLS_16 = {
    "distill.kdr.attention": {"choice": ["none", "spatial", "channel", "both"]},
    "distill.kdr.upsample": {"choice": ["nearest", "bilinear"]},
    "distill.kdr.init": {"choice": ["dirac", "kaiming"]},
}
WHOLE = {
    **WEIGHT,
    "distill.kdr.foreground_share": {"float": [0.05, 0.95]},
    "distill.kdr.pyramid_scales": {"subset": ["full", 4, 2, 1], "at_least": 1},
    "distill.kdr.review_links": {"subset": LINKS},
    "distill.kdr.attention": {
        "choice": ["none", "both"],
        "when": {"distill.kdr.review_links": "not empty"},
    },
}


def study_with(parameters: dict[str, Any], **search: Any) -> Study:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "weights": "teacher.pt"},
        "distill": {"kdr": {}},
        "training": {"epochs": EPOCHS},
    }
    return study_from(
        {"study": "sweep", "trial": trial, "search": {"parameters": parameters, **search}},
        folder=Path("/"),
    )


def identified(config: TrialConfig) -> Trial:
    return make_trial(config, data_id="data", weights_id=str)


def handed_over(trial: Trial, *, parameters: Point, trials_known: int) -> dict[str, Any]:
    return {
        "trial": {
            "key": trial.key,
            "config": trial.config.model_dump_json(),
            "parameters": parameters,
            "trials_known": trials_known,
        }
    }


def searcher_of(study: Study, folder: Path, **settings: Any) -> StudySearcher:
    return StudySearcher(
        study,
        journal=folder / "sweep.journal",
        config_of=handed_over,
        make_trial=identified,
        **settings,
    )


class Session:
    """Drives a searcher as Tune does: one process that asks, reports and completes."""

    def __init__(
        self, searcher: StudySearcher, objective: Callable[[Point], float] = lambda _: 0.5
    ) -> None:
        self.searcher, self.objective = searcher, objective
        self.started: list[dict[str, Any]] = []

    def start(self) -> str | None:
        """Asks for a trial; None when the search has finished."""
        trial_id = f"tune_{len(self.started)}"
        config = self.searcher.suggest(trial_id)
        if config == StudySearcher.FINISHED:
            return None
        self.started.append(config["trial"])
        return trial_id

    def finish(self, trial_id: str, *, epoch: int = EPOCHS, **end: Any) -> None:
        """Lets a trial run up to an epoch and end there."""
        final = self.objective(self.started[int(trial_id.split("_")[1])]["parameters"])
        for reached in range(1, epoch):
            self.searcher.on_trial_result(
                trial_id, {"epoch": reached, "AP": final * reached / EPOCHS}
            )
        result = {"epoch": epoch, "AP": final * epoch / EPOCHS}
        self.searcher.on_trial_complete(trial_id, **{"result": result, **end})

    def run(self, num_trials: int = 10_000, *, concurrent: int = 1) -> None:
        """Runs trials to their end, some at a time."""
        running: list[str] = []
        while len(self.started) < num_trials and (trial_id := self.start()):
            running.append(trial_id)
            if len(running) == concurrent:
                self.finish(running.pop(0))
        for trial_id in running:
            self.finish(trial_id)

    @property
    def points(self) -> list[Point]:
        return [started["parameters"] for started in self.started]

    @property
    def values(self) -> list[float]:
        return [self.objective(point) for point in self.points]


def optuna_trials(folder: Path, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
    """What another process reads from the journal."""
    storage = JournalStorage(JournalFileBackend(str(folder / "sweep.journal")))
    return optuna.load_study(study_name="sweep", storage=storage).get_trials(states=states or None)


def peaked(point: Point) -> float:
    """Best at weight 5, share 0.6, the two finest links and attention; a subset costs a little for
    each member."""
    links = point["distill.kdr.review_links"]
    near_weight = math.exp(-(math.log10(point["distill.kdr.weight"] / 5) ** 2) * 4)
    near_share = 1 - (point["distill.kdr.foreground_share"] - 0.6) ** 2
    right_links = fmean((link in links) == (link in LINKS[:2]) for link in LINKS)
    attention = 0.1 * (point.get("distill.kdr.attention") == "both")
    return (near_weight * near_share * right_links + attention) * (
        1 - 0.05 * len(point["distill.kdr.pyramid_scales"])
    )


def history_of(session: Session) -> dict[str, KnownTrial]:
    """What the log would hand over after a session that was killed."""
    return dict(session.searcher._known)
