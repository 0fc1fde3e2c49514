"""A search from proposal to result: budgets, known trials, grids, enqueued points, and resuming."""

import math
import pickle
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from ray import cloudpickle, tune

from kdr.plan.known import KnownTrial
from kdr.plan.points import grid, space_of
from kdr.run.launched_trial import LaunchedTrial
from kdr.run.search.budget import Used
from kdr.run.search.early_stopping import make_scheduler
from tests.run.search_sessions import (
    CELLS_16,
    EPOCHS,
    LINKS,
    WEIGHT,
    WHOLE,
    FakeLauncher,
    Session,
    history_of,
    identified,
    optuna_trials,
    searcher_of,
    study_with,
)
from tests.run.tune_stand_ins import report_of

pytestmark = pytest.mark.usefixtures("journals_in_memory")


def test_the_budget_counts_trials_of_all_sessions(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=5), tmp_path, used=Used(trials=3)))
    session.run()
    assert len(session.started) == 2
    assert session.searcher.budget.num_trials == 5
    assert session.start() is None


def test_failed_and_stopped_trials_are_charged(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=3), tmp_path))
    for end in ({"error": True, "result": None}, {"epoch": 2}, {}):
        trial_id = session.start()
        assert trial_id is not None
        session.finish(trial_id, **end)
    assert session.start() is None


def test_no_trial_starts_after_the_gpu_hours_are_up_counted_over_all_sessions(
    tmp_path: Path,
) -> None:
    seconds = [0.0]
    session = Session(
        searcher_of(
            study_with(WEIGHT, gpu_hours=10),
            tmp_path,
            used=Used(gpu_hours=4.0),
            gpus_per_trial=2.0,
            clock=lambda: seconds[0],
        )
    )
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
    session = Session(
        searcher_of(
            study_with(WEIGHT, hours=2),
            tmp_path,
            used=Used(hours=1.5),
            interrupted=[point],
            clock=lambda: seconds[0],
        )
    )
    seconds[0] = 1799.0
    assert session.start() is not None
    seconds[0] = 1800.0
    assert session.start() is None


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("concurrent", [1, 3])
def test_a_space_of_16_cells_is_used_up_without_running_a_cell_twice(
    sampler: str, concurrent: int, tmp_path: Path
) -> None:
    session = Session(searcher_of(study_with(CELLS_16, trials=100, sampler=sampler), tmp_path))
    session.run(concurrent=concurrent)
    keys = [started.key for started in session.started]
    assert len(set(keys)) == len(keys) == 16
    assert session.searcher.budget.num_trials == 16
    assert not optuna_trials(tmp_path, TrialState.RUNNING, TrialState.WAITING)


def test_a_repeated_proposal_gets_the_known_value_and_costs_nothing(tmp_path: Path) -> None:
    session = Session(
        searcher_of(study_with(CELLS_16, trials=10), tmp_path),
        lambda point: len(str(point)) / 1000,
    )
    session.run()
    told = optuna_trials(tmp_path, TrialState.COMPLETE)
    assert session.searcher.num_answered > 0
    assert len(told) == 10 + session.searcher.num_answered
    by_key: dict[str, set[float | None]] = {}
    for trial in told:
        by_key.setdefault(trial.user_attrs["key"], set()).add(trial.value)
    assert len(by_key) == 10
    assert all(len(values) == 1 for values in by_key.values())


def test_a_key_that_is_running_is_not_started_again_and_both_proposals_get_its_result(
    tmp_path: Path,
) -> None:
    session = Session(
        searcher_of(
            study_with({"distill.kdr.masks": {"choice": ["none", "boxes"]}}, trials=9), tmp_path
        )
    )
    first, second = session.start(), session.start()
    assert first is not None
    assert second is not None
    assert session.start() is None
    session.finish(first)
    session.finish(second)
    assert not optuna_trials(tmp_path, TrialState.RUNNING)
    assert (
        len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 2 + session.searcher.num_answered > 2
    )


def test_two_spellings_of_one_trial_run_once(tmp_path: Path) -> None:
    # without links, attention has no effect
    parameters = {
        "distill.kdr.review_links": {"choice": [[]]},
        "distill.kdr.attention": {"choice": ["none", "both"]},
    }
    session = Session(searcher_of(study_with(parameters, sampler="grid"), tmp_path))
    session.run()
    assert len(session.started) == 1


def test_a_grid_runs_each_cell_once_in_order_and_skips_what_is_known(tmp_path: Path) -> None:
    study = study_with(CELLS_16, sampler="grid")
    cells = list(grid(space_of(study)))
    known = {
        trial.key: KnownTrial(trial.key, "completed", 0.1)
        for trial in (identified(study.trial_with(cell)) for cell in cells[:5])
    }
    session = Session(searcher_of(study, tmp_path, known=known))
    session.run()
    assert session.points == cells[5:]


def test_enqueued_points_come_first_and_fill_up_from_the_trial(tmp_path: Path) -> None:
    study = study_with(
        WHOLE, trials=3, enqueue=[{"distill.kdr.weight": 7}, {"distill.kdr.review_links": []}]
    )
    session = Session(searcher_of(study, tmp_path))
    session.run()
    assert session.points[0]["distill.kdr.weight"] == 7
    assert session.points[0]["distill.kdr.review_links"] == LINKS
    assert session.points[1]["distill.kdr.review_links"] == []
    assert "distill.kdr.attention" not in session.points[1]
    assert len(session.points) == 3


def test_a_trial_knows_how_many_results_its_proposal_rests_on(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=4), tmp_path))
    session.run(concurrent=2)
    assert [started.trials_known for started in session.started] == [0, 0, 1, 2]


def test_resuming_runs_what_is_missing_and_enqueues_nothing_twice(tmp_path: Path) -> None:
    study = study_with(
        WEIGHT, trials=6, enqueue=[{"distill.kdr.weight": 7}, {"distill.kdr.weight": 8}]
    )
    first = Session(searcher_of(study, tmp_path), lambda point: point["distill.kdr.weight"] / 100)
    first.run(3)
    cut_off = first.start()  # killed while this one runs
    assert cut_off is not None
    [interrupted] = first.points[3:]

    second = Session(
        searcher_of(
            study, tmp_path, known=history_of(first), interrupted=[interrupted], used=Used(trials=4)
        ),
        first.objective,
    )
    second.run()
    assert second.points[0] == interrupted
    assert len(second.points) == 3  # one resumes, two are new
    assert 7.0 not in [point["distill.kdr.weight"] for point in second.points]
    assert second.searcher.budget.num_trials == 6
    assert len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 6
    assert [trial.params for trial in optuna_trials(tmp_path, TrialState.FAIL)] == [interrupted]
    assert not optuna_trials(tmp_path, TrialState.RUNNING, TrialState.WAITING)


def test_an_interrupted_trial_resumes_even_if_the_budget_is_used_up(tmp_path: Path) -> None:
    interrupted = {"distill.kdr.weight": 3.0}
    session = Session(
        searcher_of(
            study_with(WEIGHT, trials=4), tmp_path, interrupted=[interrupted], used=Used(trials=4)
        )
    )
    session.run()
    assert session.points == [interrupted]
    assert session.searcher.budget.num_trials == 4


def test_an_interrupted_trial_outside_a_changed_space_is_left_alone(tmp_path: Path) -> None:
    session = Session(
        searcher_of(
            study_with(WEIGHT, trials=1),
            tmp_path,
            interrupted=[{"distill.kdr.weight": 99.0}],
            used=Used(trials=1),
        )
    )
    assert session.start() is None


def test_trials_of_other_studies_count_by_their_key_and_are_not_shown_to_the_sampler(
    tmp_path: Path,
) -> None:
    study = study_with({"distill.kdr.masks": {"choice": ["none", "boxes"]}}, trials=9)
    key = identified(study.trial_with({"distill.kdr.masks": "none"})).key
    session = Session(
        searcher_of(
            study,
            tmp_path,
            known={key: KnownTrial(key, "completed", 0.3, {4: 0.3}, parameters=None)},
        )
    )
    assert optuna_trials(tmp_path) == []
    session.run()
    assert session.points == [{"distill.kdr.masks": "boxes"}]
    assert 0.3 in [trial.value for trial in optuna_trials(tmp_path)]


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_each_trial_that_another_study_ran_is_noted_once(sampler: str, tmp_path: Path) -> None:
    study = study_with(CELLS_16, trials=100, sampler=sampler)  # until the space is used up
    cells = list(grid(space_of(study)))[:8]
    trials = [identified(study.trial_with(cell)) for cell in cells]
    theirs = {trial.key: KnownTrial(trial.key, "completed", 0.3) for trial in trials[:7]}
    ours = KnownTrial(trials[7].key, "completed", 0.1, parameters=cells[7])
    launcher = FakeLauncher()
    known = theirs | {ours.key: ours}
    session = Session(
        searcher_of(study, tmp_path, known=known, used=Used(trials=1), launcher=launcher)
    )
    session.run()
    assert sorted(key for key, _ in launcher.noted) == sorted(theirs)
    assert dict(launcher.noted) == {
        trial.key: cell for trial, cell in zip(trials[:7], cells[:7], strict=True)
    }
    assert len(session.started) == 8
    assert {
        trial.user_attrs["key"] for trial in optuna_trials(tmp_path) if trial.value == 0.3
    } == set(theirs)


def test_an_enqueued_point_that_another_study_ran_costs_nothing_and_teaches_the_sampler(
    tmp_path: Path,
) -> None:
    study = study_with(WEIGHT, trials=1, enqueue=[{"distill.kdr.weight": 7}])
    key = identified(study.trial_with({"distill.kdr.weight": 7.0})).key
    launcher = FakeLauncher()
    known = {key: KnownTrial(key, "completed", 0.3)}
    session = Session(searcher_of(study, tmp_path, known=known, launcher=launcher))
    session.run()
    assert [key for key, _ in launcher.noted] == [key]
    assert len(session.started) == session.searcher.budget.num_trials == 1
    [told, _] = optuna_trials(tmp_path)
    assert (told.params, told.value, told.user_attrs["key"]) == (
        {"distill.kdr.weight": 7.0},
        0.3,
        key,
    )


def test_a_proposal_that_is_not_a_valid_trial_is_skipped(tmp_path: Path) -> None:
    # what check_space refuses before launch
    study = study_with({"training.epochs": {"int": [0, 1]}}, trials=2)
    session = Session(searcher_of(study, tmp_path))
    session.run()
    assert session.points == [{"training.epochs": 1}]
    assert "trial.training.epochs: must be greater than or equal to 1, got 0" in str(
        session.searcher.refused[0]
    )


def test_tune_can_pickle_the_searcher_and_saves_nothing_of_it(tmp_path: Path) -> None:
    lock = threading.Lock()  # cannot be pickled
    searcher = searcher_of(
        study_with(WEIGHT, trials=1), tmp_path, clock=lambda: float(lock.locked())
    )
    pickled = cloudpickle.dumps(searcher)  # type: ignore[no-untyped-call]
    assert len(pickled) < 1000
    assert pickle.loads(pickled).__dict__ == {"study": "sweep"}
    searcher.save_to_dir(str(tmp_path))
    assert not list(tmp_path.glob("searcher-state*"))


class Quadratic(tune.Trainable):
    """Reports a value that rises with the epochs to a peak at weight 5, with no training."""

    def setup(self, config: Mapping[str, Any]) -> None:
        self.epoch = 0
        weight = LaunchedTrial.of_config(config).point["distill.kdr.weight"]
        self.final = -(math.log10(weight / 5) ** 2)

    def reset_config(self, new_config: Mapping[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, object]:
        self.epoch += 1
        value = (
            math.nan
            if self.epoch == EPOCHS and self.final < -1
            else self.final * EPOCHS / self.epoch
        )
        return report_of(self.epoch, value, is_last=self.epoch == EPOCHS).as_result()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to save."""


@pytest.mark.ray
def test_ray_tune_runs_a_whole_search_and_optuna_gets_every_end(
    ray_here: None, tmp_path: Path
) -> None:
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
    assert {trial.state for trial in told} <= {
        TrialState.COMPLETE,
        TrialState.PRUNED,
        TrialState.FAIL,
    }
    assert [trial for trial in told if trial.state == TrialState.PRUNED]
    last_epochs = {}
    for result in (results[number] for number in range(len(results))):
        assert result.config is not None
        assert result.metrics is not None
        last_epochs[LaunchedTrial.of_config(result.config).key] = result.metrics["epoch"]
    for trial in told:
        stopped = last_epochs[trial.user_attrs["key"]] < EPOCHS
        assert (trial.state == TrialState.PRUNED) == stopped
        assert len(trial.intermediate_values) == last_epochs[trial.user_attrs["key"]] - (
            trial.state == TrialState.FAIL
        )


def test_a_trial_that_another_study_trains_is_left_out_and_asked_for_again_once_it_is_known(
    tmp_path: Path,
) -> None:
    study = study_with(WEIGHT, trials=3, enqueue=[{"distill.kdr.weight": 7}])
    key = identified(study.trial_with({"distill.kdr.weight": 7})).key
    session = Session(searcher_of(study, tmp_path, launcher=FakeLauncher([key])))
    session.run()
    assert len(session.started) == 2
    assert key not in {started.key for started in session.started}
    assert session.searcher.claimed_by_others == {key}
    known = history_of(session) | {key: KnownTrial(key, "completed", 0.9, {EPOCHS: 0.9})}
    again = Session(searcher_of(study, tmp_path, known=known, used=Used(trials=2)))
    again.run()
    assert again.searcher.claimed_by_others == set()
    told = {
        trial.user_attrs["key"]: trial.value
        for trial in optuna_trials(tmp_path, TrialState.COMPLETE)
    }
    assert told[key] == 0.9
    assert len(again.started) == 1
    assert len({started.key for started in (*session.started, *again.started)} | {key}) == 4


def test_a_grid_whose_cells_are_all_trained_by_others_ends_and_names_them(tmp_path: Path) -> None:
    study = study_with(CELLS_16, sampler="grid")
    keys = [identified(study.trial_with(cell)).key for cell in grid(space_of(study))]
    session = Session(searcher_of(study, tmp_path, launcher=FakeLauncher(keys)))
    session.run()
    assert session.started == []
    assert len(session.searcher.claimed_by_others) == 16


def test_after_the_budget_of_hours_no_other_driver_is_waited_for(tmp_path: Path) -> None:
    seconds = [0.0]
    study = study_with(WEIGHT, hours=1, enqueue=[{"distill.kdr.weight": 7}])
    key = identified(study.trial_with({"distill.kdr.weight": 7})).key
    session = Session(
        searcher_of(study, tmp_path, launcher=FakeLauncher([key]), clock=lambda: seconds[0])
    )
    assert session.start()
    assert session.searcher.claimed_by_others == {key}
    seconds[0] = 3600.0
    assert session.start() is None
    assert session.searcher.claimed_by_others == set()
