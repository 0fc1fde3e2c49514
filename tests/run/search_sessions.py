"""Drives a search as Tune does, without Ray: for the tests of searcher and sampler."""

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
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
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.budget import SearchBudget, Used
from kdr.run.search.history import History
from kdr.run.search.searcher import StudySearcher
from tests.run.tune_stand_ins import report_of

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


@dataclass
class FakeLauncher:
    """The driver's side of a search, without a log."""

    trained_by_others: Collection[str] = ()
    """Keys of trials that may not run."""
    noted: list[tuple[str, Point]] = field(default_factory=list)
    """Trials that the study uses and did not start."""
    is_ending: bool = False

    def may_run(self, key: str) -> bool:
        return key not in self.trained_by_others

    def note(self, trial: Trial, point: Point) -> None:
        self.noted.append((trial.key, dict(point)))

    def launch(self, trial: Trial, point: Point, *, trials_known: int) -> LaunchedTrial:
        return LaunchedTrial.of(trial, parameters=point, trials_known=trials_known)


def searcher_of(
    study: Study,
    folder: Path,
    *,
    known: Mapping[str, KnownTrial] | None = None,
    interrupted: Sequence[Point] = (),
    used: Used | None = None,
    gpus_per_trial: float = 0.0,
    launcher: FakeLauncher | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> StudySearcher:
    assert study.search is not None
    return StudySearcher(
        study,
        journal=folder / "sweep.journal",
        history=History(known=known or {}, interrupted=tuple(interrupted)),
        budget=SearchBudget(study.search, used, gpus_per_trial=gpus_per_trial, clock=clock),
        launcher=launcher or FakeLauncher(),
        make_trial=identified,
    )


class Session:
    """Drives a searcher as Tune does: one process that asks, reports and completes."""

    def __init__(
        self, searcher: StudySearcher, objective: Callable[[Point], float] = lambda _: 0.5
    ) -> None:
        self.searcher, self.objective = searcher, objective
        self.started: list[LaunchedTrial] = []

    def start(self) -> str | None:
        """Asks for a trial; None when the search has finished."""
        trial_id = f"tune_{len(self.started)}"
        config = self.searcher.suggest(trial_id)
        if isinstance(config, str):
            assert config == StudySearcher.FINISHED
            return None
        self.started.append(LaunchedTrial.of_config(config))
        return trial_id

    def finish(self, trial_id: str, *, epoch: int = EPOCHS, **end: Any) -> None:
        """Lets a trial run up to an epoch and end there."""
        final = self.objective(self.started[int(trial_id.split("_")[1])].point)
        for reached in range(1, epoch):
            report = report_of(reached, final * reached / EPOCHS)
            self.searcher.on_trial_result(trial_id, report.as_result())
        result = report_of(epoch, final * epoch / EPOCHS, is_last=True).as_result()
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
        return [started.point for started in self.started]

    @property
    def values(self) -> list[float]:
        return [self.objective(point) for point in self.points]


def optuna_trials(folder: Path, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
    """Reads the journal as another process does."""
    storage = JournalStorage(JournalFileBackend(str(folder / "sweep.journal")))
    return optuna.load_study(study_name="sweep", storage=storage).get_trials(states=states or None)


def peaked(point: Point) -> float:
    """An objective: best at weight 5, share 0.6, the two finest links and attention; each member of
    the subset costs a little."""
    links = point["distill.kdr.review_links"]
    near_weight = math.exp(-(math.log10(point["distill.kdr.weight"] / 5) ** 2) * 4)
    near_share = 1 - (point["distill.kdr.foreground_share"] - 0.6) ** 2
    right_links = fmean((link in links) == (link in LINKS[:2]) for link in LINKS)
    attention = 0.1 * (point.get("distill.kdr.attention") == "both")
    value = near_weight * near_share * right_links + attention
    return float(value * (1 - 0.05 * len(point["distill.kdr.pyramid_scales"])))


def history_of(session: Session) -> dict[str, KnownTrial]:
    """Returns the known trials that the log would have after a killed session."""
    return dict(session.searcher._known)
