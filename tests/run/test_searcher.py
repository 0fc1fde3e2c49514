"""A search from proposal to result: budgets, known trials, resuming, and how ends are told to Optuna."""

import math
import os
import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import cloudpickle, tune

from kdr.config.study import Study, study_from
from kdr.config.trial import Trial, TrialConfig
from kdr.plan.keys import make_trial
from kdr.plan.known import KnownTrial
from kdr.plan.points import Point, grid, space_of
from kdr.run.early_stopping import make_scheduler
from kdr.run.searcher import StudySearcher

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
    "distill.kdr.attention": {"choice": ["none", "both"], "when": {"distill.kdr.review_links": "not empty"}},
}


@pytest.fixture(autouse=True)
def _journals_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna waits for the disk ten times per trial, which would be nearly all of these tests' time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def study_with(parameters: dict[str, Any], **search: Any) -> Study:
    trial = {
        "data": {"dataset": "shapes"},
        "teacher": {"backbone": "resnet18", "weights": "teacher.pt"},
        "distill": {"kdr": {}},
        "training": {"epochs": EPOCHS},
    }
    return study_from({"study": "sweep", "trial": trial, "search": {"parameters": parameters, **search}}, folder=Path("/"))


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
    return StudySearcher(study, journal=folder / "sweep.journal", config_of=handed_over, make_trial=identified, **settings)


class Session:
    """Drives a searcher as Tune does: one process that asks, reports and completes."""

    def __init__(self, searcher: StudySearcher, objective: Callable[[Point], float] = lambda _: 0.5) -> None:
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
            self.searcher.on_trial_result(trial_id, {"epoch": reached, "AP": final * reached / EPOCHS})
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
    """Best at weight 5, share 0.6, the two finest links and attention; a subset costs a little for each member."""
    links = point["distill.kdr.review_links"]
    near_weight = math.exp(-(math.log10(point["distill.kdr.weight"] / 5) ** 2) * 4)
    near_share = 1 - (point["distill.kdr.foreground_share"] - 0.6) ** 2
    right_links = fmean((link in links) == (link in LINKS[:2]) for link in LINKS)
    attention = 0.1 * (point.get("distill.kdr.attention") == "both")
    return (near_weight * near_share * right_links + attention) * (1 - 0.05 * len(point["distill.kdr.pyramid_scales"]))


@pytest.mark.slow
def test_tpe_finds_better_trials_than_random_draws(tmp_path: Path) -> None:
    means = {}
    for sampler in ("tpe", "random"):
        late = []
        for seed in range(3):
            study = study_with(WHOLE, trials=30, sampler={sampler: {"seed": seed}})
            session = Session(searcher_of(study, tmp_path / f"{sampler}{seed}"), peaked)
            session.run()
            late.append(fmean(session.values[15:]))
        means[sampler] = fmean(late)
    assert means["tpe"] > 1.5 * means["random"]


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_one_seed_gives_one_sweep_and_another_seed_another(sampler: str, tmp_path: Path) -> None:
    def points(seed: int, folder: str) -> list[Point]:
        session = Session(searcher_of(study_with(WHOLE, trials=14, sampler={sampler: {"seed": seed}}), tmp_path / folder), peaked)
        session.run()
        return session.points

    assert points(1, "a") == points(1, "b")
    assert points(1, "c") != points(2, "d")


def test_every_trial_is_a_point_of_the_space(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WHOLE, trials=30), tmp_path), peaked)
    session.run()
    for started in session.started:
        point = started["parameters"]
        assert ("distill.kdr.attention" in point) == bool(point["distill.kdr.review_links"])
        assert len(point["distill.kdr.pyramid_scales"]) >= 1
        config = TrialConfig.model_validate_json(started["config"])
        assert identified(config).key == started["key"]
        assert config.distill.kdr is not None
        assert list(config.distill.kdr.review_links) == point["distill.kdr.review_links"]


def test_the_budget_counts_trials_of_all_sessions(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=5), tmp_path, num_used=3))
    session.run()
    assert len(session.started) == 2
    assert session.searcher.num_used == 5
    assert session.start() is None


def test_failed_and_stopped_trials_are_charged(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=3), tmp_path))
    for end in ({"error": True, "result": None}, {"epoch": 2}, {}):
        trial_id = session.start()
        assert trial_id is not None
        session.finish(trial_id, **end)
    assert session.start() is None


def test_no_trial_starts_after_the_gpu_hours_are_up_counted_over_all_sessions(tmp_path: Path) -> None:
    seconds = [0.0]
    settings = {"gpu_hours_used": 4.0, "num_gpus": 2.0, "clock": lambda: seconds[0]}
    session = Session(searcher_of(study_with(WEIGHT, gpu_hours=10), tmp_path, **settings))
    first, second = session.start(), session.start()
    assert first
    assert second
    seconds[0] += 3600
    session.finish(first)
    third = session.start()  # 4 before, and 2 GPUs of two trials for an hour: 8 of 10
    assert third
    seconds[0] += 1800
    assert session.start() is None
    session.finish(third)
    session.finish(second)


def test_no_trial_starts_after_the_hours_are_up_counted_over_all_sessions(tmp_path: Path) -> None:
    seconds = [0.0]
    point = {"distill.kdr.weight": 2.0}
    settings = {"hours_used": 1.5, "clock": lambda: seconds[0], "interrupted": [point]}
    session = Session(searcher_of(study_with(WEIGHT, hours=2), tmp_path, **settings))
    seconds[0] = 1799.0
    assert session.start() is not None
    seconds[0] = 1800.0
    assert session.start() is None


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_space_of_16_cells_is_used_up_without_running_a_cell_twice(sampler: str, concurrent: int, tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(CELLS_16, trials=100, sampler=sampler), tmp_path))
    session.run(concurrent=concurrent)
    keys = [started["key"] for started in session.started]
    assert len(set(keys)) == len(keys) == 16
    assert session.searcher.num_used == 16
    assert not optuna_trials(tmp_path, TrialState.RUNNING, TrialState.WAITING)


def test_a_repeated_proposal_is_told_the_known_value_and_costs_nothing(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(CELLS_16, trials=10), tmp_path), lambda point: len(str(point)) / 1000)
    session.run()
    told = optuna_trials(tmp_path, TrialState.COMPLETE)
    assert session.searcher.num_answered > 0
    assert len(told) == 10 + session.searcher.num_answered
    by_key: dict[str, set[float | None]] = {}
    for trial in told:
        by_key.setdefault(trial.user_attrs["key"], set()).add(trial.value)
    assert len(by_key) == 10
    assert all(len(values) == 1 for values in by_key.values())


def test_a_key_that_is_running_is_not_started_again_and_both_proposals_get_its_result(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with({"distill.kdr.masks": {"choice": ["none", "boxes"]}}, trials=9), tmp_path))
    first, second = session.start(), session.start()
    assert first is not None
    assert second is not None
    assert session.start() is None
    session.finish(first)
    session.finish(second)
    assert not optuna_trials(tmp_path, TrialState.RUNNING)
    assert len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 2 + session.searcher.num_answered > 2


def test_two_spellings_of_one_trial_run_once(tmp_path: Path) -> None:
    # without links, attention has no effect
    parameters = {"distill.kdr.review_links": {"choice": [[]]}, "distill.kdr.attention": {"choice": ["none", "both"]}}
    session = Session(searcher_of(study_with(parameters, sampler="grid"), tmp_path))
    session.run()
    assert len(session.started) == 1


def test_a_grid_runs_each_cell_once_in_order_and_skips_what_is_known(tmp_path: Path) -> None:
    study = study_with(CELLS_16, sampler="grid")
    cells = list(grid(space_of(study)))
    known = {
        trial.key: KnownTrial(trial.key, "completed", 0.1) for trial in (identified(study.trial_with(cell)) for cell in cells[:5])
    }
    session = Session(searcher_of(study, tmp_path, known=known))
    session.run()
    assert session.points == cells[5:]


def test_enqueued_points_come_first_and_fill_up_from_the_trial(tmp_path: Path) -> None:
    study = study_with(WHOLE, trials=3, enqueue=[{"distill.kdr.weight": 7}, {"distill.kdr.review_links": []}])
    session = Session(searcher_of(study, tmp_path))
    session.run()
    assert session.points[0]["distill.kdr.weight"] == 7
    assert session.points[0]["distill.kdr.review_links"] == LINKS
    assert session.points[1]["distill.kdr.review_links"] == []
    assert "distill.kdr.attention" not in session.points[1]
    assert len(session.points) == 3


def test_the_sampler_learns_from_enqueued_points(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=2, enqueue=[{"distill.kdr.weight": 7}])
    Session(searcher_of(study, tmp_path), lambda point: point["distill.kdr.weight"]).run()
    [first, _] = optuna_trials(tmp_path)
    assert (first.params, first.value) == ({"distill.kdr.weight": 7.0}, 7.0)


def test_a_completed_trial_is_told_with_its_value_and_epochs(tmp_path: Path) -> None:
    Session(searcher_of(study_with(WEIGHT, trials=1), tmp_path), lambda _: 0.4).run()
    [trial] = optuna_trials(tmp_path)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.4)
    assert trial.intermediate_values == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4})


def test_a_trial_that_was_stopped_is_told_as_pruned_with_what_it_had_reached(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=1), tmp_path), lambda _: 0.4)
    trial_id = session.start()
    assert trial_id is not None
    session.finish(trial_id, epoch=2)
    [trial] = optuna_trials(tmp_path)
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == pytest.approx({1: 0.1, 2: 0.2})


@pytest.mark.parametrize(
    "end",
    [
        {"result": {"epoch": EPOCHS, "AP": float("nan")}},
        {"result": {"epoch": EPOCHS, "AP": float("inf")}},
        {"result": {"epoch": EPOCHS, "AP": None}},
        {"result": {"epoch": EPOCHS}},
        {"result": {}},
        {"result": None},
        {"error": True},
        {"error": True, "result": None},
    ],
)
def test_an_error_and_a_result_that_is_no_number_are_told_as_failed(end: dict[str, Any], tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=1), tmp_path))
    trial_id = session.start()
    assert trial_id is not None
    session.finish(trial_id, **end)
    [trial] = optuna_trials(tmp_path)
    assert trial.state == TrialState.FAIL


def test_epochs_without_a_metric_and_epochs_told_twice_are_passed_over(tmp_path: Path) -> None:
    searcher = searcher_of(study_with(WEIGHT, trials=1), tmp_path)
    searcher.suggest("a")
    for result in ({"epoch": 1, "AP": None}, {"epoch": 2, "AP": 0.2}, {"epoch": 2, "AP": 0.3}, {"epoch": 3}):
        searcher.on_trial_result("a", result)
    searcher.on_trial_result("never started", {"epoch": 1, "AP": 0.5})
    searcher.on_trial_complete("never started", {"epoch": 1, "AP": 0.5})
    searcher.on_trial_complete("a", {"epoch": 4, "AP": 0.4})
    [trial] = optuna_trials(tmp_path)
    assert trial.intermediate_values == {2: 0.2, 4: 0.4}


def test_a_trial_knows_how_many_results_its_proposal_rests_on(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=4), tmp_path))
    session.run(concurrent=2)
    assert [started["trials_known"] for started in session.started] == [0, 0, 1, 2]


def history_of(session: Session) -> dict[str, KnownTrial]:
    """What the log would hand over after a session that was killed."""
    return dict(session.searcher._known)


def test_resuming_runs_what_is_missing_and_enqueues_nothing_twice(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=6, enqueue=[{"distill.kdr.weight": 7}, {"distill.kdr.weight": 8}])
    first = Session(searcher_of(study, tmp_path), lambda point: point["distill.kdr.weight"] / 100)
    first.run(3)
    cut_off = first.start()  # killed while this one runs
    assert cut_off is not None
    [interrupted] = first.points[3:]

    second = Session(
        searcher_of(study, tmp_path, known=history_of(first), interrupted=[interrupted], num_used=4), first.objective
    )
    second.run()
    assert second.points[0] == interrupted
    assert len(second.points) == 3  # one goes on, two are new
    assert 7.0 not in [point["distill.kdr.weight"] for point in second.points]
    assert second.searcher.num_used == 6
    assert len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 6
    assert [trial.params for trial in optuna_trials(tmp_path, TrialState.FAIL)] == [interrupted]
    assert not optuna_trials(tmp_path, TrialState.RUNNING, TrialState.WAITING)


def test_an_interrupted_trial_goes_on_even_if_the_budget_is_used_up(tmp_path: Path) -> None:
    interrupted = {"distill.kdr.weight": 3.0}
    session = Session(searcher_of(study_with(WEIGHT, trials=4), tmp_path, interrupted=[interrupted], num_used=4))
    session.run()
    assert session.points == [interrupted]
    assert session.searcher.num_used == 4


def test_an_interrupted_trial_outside_a_changed_space_is_left_alone(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=1), tmp_path, interrupted=[{"distill.kdr.weight": 99.0}], num_used=1))
    assert session.start() is None


def test_a_resumed_sweep_does_not_repeat_its_first_draws(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=8, sampler={"random": {"seed": 3}})
    first = Session(searcher_of(study, tmp_path))
    first.run(4)
    second = Session(searcher_of(study, tmp_path, known=history_of(first), num_used=4))
    second.run()
    assert len({point["distill.kdr.weight"] for point in first.points + second.points}) == 8


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("num_ended", [0, 3, 12])
def test_a_sweep_that_was_cut_off_goes_on_with_the_points_that_it_would_have_drawn(
    sampler: str, num_ended: int, tmp_path: Path
) -> None:
    study = study_with(WEIGHT, trials=15, sampler=sampler)
    undisturbed = Session(searcher_of(study, tmp_path / "one"), lambda point: point["distill.kdr.weight"])
    undisturbed.run()
    first = Session(searcher_of(study, tmp_path / "two"), undisturbed.objective)
    first.run(num_ended)
    assert first.start()  # killed while this one runs, and while the next one is drawn
    first.searcher._sampler.propose()
    known, interrupted = history_of(first), first.points[-1:]
    second = Session(
        searcher_of(study, tmp_path / "two", known=known, interrupted=interrupted, num_used=num_ended + 1), first.objective
    )
    second.run()
    assert first.points[:-1] + second.points == undisturbed.points


def test_the_log_alone_is_enough_to_go_on(tmp_path: Path) -> None:
    study = study_with(WHOLE, trials=12, sampler={"tpe": {"seed": 2}})  # none of its draws needs mending
    first = Session(searcher_of(study, tmp_path / "one"), peaked)
    first.run(10)
    trial_id = first.start()
    assert trial_id is not None
    first.finish(trial_id, epoch=2)
    second = Session(searcher_of(study, tmp_path / "two", known=history_of(first), num_used=11), peaked)

    def told(folder: Path) -> list[tuple[Any, ...]]:
        trials = optuna_trials(folder)
        return sorted((t.user_attrs["key"], t.state.name, t.values, t.params, t.intermediate_values) for t in trials)

    assert told(tmp_path / "two") == told(tmp_path / "one")
    second.run()
    assert len(second.started) == 1


def test_what_the_journal_holds_already_is_not_added_again(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=3)
    first = Session(searcher_of(study, tmp_path))
    first.run()
    for _ in range(2):
        searcher_of(study, tmp_path, known=history_of(first), num_used=3)
    assert len(optuna_trials(tmp_path)) == 3


def test_trials_of_other_studies_count_by_their_key_and_are_not_shown_to_the_sampler(tmp_path: Path) -> None:
    study = study_with({"distill.kdr.masks": {"choice": ["none", "boxes"]}}, trials=9)
    key = identified(study.trial_with({"distill.kdr.masks": "none"})).key
    session = Session(searcher_of(study, tmp_path, known={key: KnownTrial(key, "completed", 0.3, {4: 0.3}, parameters=None)}))
    assert optuna_trials(tmp_path) == []
    session.run()
    assert session.points == [{"distill.kdr.masks": "boxes"}]
    assert 0.3 in [trial.value for trial in optuna_trials(tmp_path)]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_the_owner_hears_once_of_each_trial_that_another_study_ran(sampler: str, tmp_path: Path) -> None:
    study = study_with(CELLS_16, trials=100, sampler=sampler)  # until the space is used up
    cells = list(grid(space_of(study)))[:8]
    trials = [identified(study.trial_with(cell)) for cell in cells]
    theirs = {trial.key: KnownTrial(trial.key, "completed", 0.3) for trial in trials[:7]}
    ours = KnownTrial(trials[7].key, "completed", 0.1, parameters=cells[7])
    heard: list[tuple[str, Point]] = []
    known = theirs | {ours.key: ours}
    searcher = searcher_of(
        study, tmp_path, known=known, num_used=1, on_known=lambda trial, point: heard.append((trial.key, dict(point)))
    )
    session = Session(searcher)
    session.run()
    assert sorted(key for key, _ in heard) == sorted(theirs)
    assert dict(heard) == {trial.key: cell for trial, cell in zip(trials[:7], cells[:7], strict=True)}
    assert len(session.started) == 8
    assert {trial.user_attrs["key"] for trial in optuna_trials(tmp_path) if trial.value == 0.3} == set(theirs)


def test_an_enqueued_point_that_another_study_ran_costs_nothing_and_teaches_the_sampler(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=1, enqueue=[{"distill.kdr.weight": 7}])
    key = identified(study.trial_with({"distill.kdr.weight": 7.0})).key
    heard: list[str] = []
    known = {key: KnownTrial(key, "completed", 0.3)}
    session = Session(searcher_of(study, tmp_path, known=known, on_known=lambda trial, _: heard.append(trial.key)))
    session.run()
    assert heard == [key]
    assert len(session.started) == session.searcher.num_used == 1
    [told, _] = optuna_trials(tmp_path)
    assert (told.params, told.value, told.user_attrs["key"]) == ({"distill.kdr.weight": 7.0}, 0.3, key)


def test_a_journal_of_another_space_is_begun_anew(tmp_path: Path) -> None:
    Session(searcher_of(study_with(CELLS_16, trials=3), tmp_path)).run()
    changed = study_with(CELLS_16 | {"distill.kdr.attention": {"choice": ["both", "none"]}}, trials=5)
    session = Session(searcher_of(changed, tmp_path, num_used=3))
    session.run()
    assert len(session.started) == 2
    assert {trial.params["distill.kdr.attention"] for trial in optuna_trials(tmp_path)} <= {'"both"', '"none"'}


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "worker', b"\x00\x00\xff", b'{"op_code": 4}'])
def test_a_journal_that_a_kill_tore_is_read_and_written_on(torn: bytes, tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=4)
    first = Session(searcher_of(study, tmp_path))
    first.run(2)
    with (tmp_path / "sweep.journal").open("ab") as journal:
        journal.write(torn)
    Session(searcher_of(study, tmp_path, known=first.searcher._known, num_used=2)).run()
    assert len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 4


def test_a_proposal_that_is_no_trial_is_passed_over(tmp_path: Path) -> None:
    # what check_space refuses before launch
    study = study_with({"training.epochs": {"int": [0, 1]}}, trials=2)
    session = Session(searcher_of(study, tmp_path))
    session.run()
    assert session.points == [{"training.epochs": 1}]
    assert "trial.training.epochs: must be greater than or equal to 1, got 0" in str(session.searcher.refused[0])


def test_tune_can_pickle_the_searcher_and_saves_nothing_of_it(tmp_path: Path) -> None:
    lock = threading.Lock()  # cannot be pickled
    searcher = searcher_of(study_with(WEIGHT, trials=1), tmp_path, clock=lambda: float(lock.locked()))
    assert len(cloudpickle.dumps(searcher)) < 1000
    assert pickle.loads(cloudpickle.dumps(searcher)).__dict__ == {"study": "sweep"}
    searcher.save_to_dir(str(tmp_path))
    assert not list(tmp_path.glob("searcher-state*"))


class Quadratic(tune.Trainable):
    """Reports a value that rises with the epochs to a peak at weight 5, with no training."""

    def setup(self, config: Mapping[str, Any]) -> None:
        self.epoch, self.final = 0, -((math.log10(config["trial"]["parameters"]["distill.kdr.weight"] / 5)) ** 2)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        value = math.nan if self.epoch == EPOCHS and self.final < -1 else self.final * EPOCHS / self.epoch
        return {"epoch": self.epoch, "AP": value, "done": self.epoch == EPOCHS}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save."""


@pytest.mark.ray
def test_ray_tune_runs_a_whole_search_and_optuna_hears_every_end(ray_here: None, tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=12, stop_early={"asha": {"grace_epochs": 1, "reduction": 2}})
    assert study.search is not None
    searcher = searcher_of(study, tmp_path)
    results = tune.Tuner(
        tune.with_resources(Quadratic, {"cpu": 1}),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=make_scheduler(study.search.stop_early, metric="AP", max_epochs=EPOCHS),
            num_samples=-1,
            max_concurrent_trials=2,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "ray"), verbose=0),
    ).fit()
    told = optuna_trials(tmp_path)
    assert len(results) == len(told) == 12
    assert {trial.state for trial in told} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    assert [trial for trial in told if trial.state == TrialState.PRUNED]
    last_epochs = {result.config["trial"]["key"]: result.metrics["epoch"] for result in results}
    for trial in told:
        stopped = last_epochs[trial.user_attrs["key"]] < EPOCHS
        assert (trial.state == TrialState.PRUNED) == stopped
        assert len(trial.intermediate_values) == last_epochs[trial.user_attrs["key"]] - (trial.state == TrialState.FAIL)


def test_a_journal_that_knows_what_the_log_has_forgotten_is_begun_anew(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=3)
    first = Session(searcher_of(study, tmp_path))
    first.run()
    known = {key: known for key, known in first.searcher._known.items() if key != first.started[0]["key"]}
    again = Session(searcher_of(study, tmp_path, known=known, num_used=3, interrupted=[first.started[0]["parameters"]]))
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "sweep.journal")))
    told = [trial.user_attrs.get("key") for trial in optuna.load_study(study_name="sweep", storage=storage).trials]
    assert sorted(told) == sorted(known)
    again.run()
    assert [trial["key"] for trial in again.started] == [first.started[0]["key"]]
