"""What the sampler draws, which results it gets, and what its journal survives."""

from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from kdr.plan.points import Point
from kdr.run.search.budget import Used
from tests.run.search_sessions import (
    CELLS_16,
    EPOCHS,
    WEIGHT,
    WHOLE,
    Session,
    history_of,
    identified,
    optuna_trials,
    peaked,
    searcher_of,
    study_with,
)
from tests.run.tune_stand_ins import report_of

pytestmark = pytest.mark.usefixtures("journals_in_memory")


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
        session = Session(
            searcher_of(
                study_with(WHOLE, trials=14, sampler={sampler: {"seed": seed}}), tmp_path / folder
            ),
            peaked,
        )
        session.run()
        return session.points

    assert points(1, "a") == points(1, "b")
    assert points(1, "c") != points(2, "d")


def test_every_trial_is_a_point_of_the_space(tmp_path: Path) -> None:
    session = Session(searcher_of(study_with(WHOLE, trials=30), tmp_path), peaked)
    session.run()
    for started in session.started:
        point = started.point
        assert ("distill.kdr.attention" in point) == bool(point["distill.kdr.review_links"])
        assert len(point["distill.kdr.pyramid_scales"]) >= 1
        config = started.trial.config
        assert identified(config).key == started.key
        assert config.distill.kdr is not None
        assert list(config.distill.kdr.review_links) == point["distill.kdr.review_links"]


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


def test_a_trial_that_was_stopped_is_told_as_pruned_with_what_it_had_reached(
    tmp_path: Path,
) -> None:
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
def test_an_error_and_a_result_that_is_no_number_are_told_as_failed(
    end: dict[str, Any], tmp_path: Path
) -> None:
    session = Session(searcher_of(study_with(WEIGHT, trials=1), tmp_path))
    trial_id = session.start()
    assert trial_id is not None
    session.finish(trial_id, **end)
    [trial] = optuna_trials(tmp_path)
    assert trial.state == TrialState.FAIL


def test_epochs_without_a_metric_and_epochs_told_twice_are_passed_over(tmp_path: Path) -> None:
    searcher = searcher_of(study_with(WEIGHT, trials=1), tmp_path)
    searcher.suggest("a")
    for epoch, value in ((1, None), (2, 0.2), (2, 0.3), (3, None)):
        searcher.on_trial_result("a", report_of(epoch, value).as_result())
    searcher.on_trial_result("a", {"done": False})  # columns of Tune's own alone
    searcher.on_trial_result("never started", report_of(1, 0.5).as_result())
    searcher.on_trial_complete("never started", report_of(1, 0.5).as_result())
    searcher.on_trial_complete("a", report_of(4, 0.4, is_last=True).as_result())
    [trial] = optuna_trials(tmp_path)
    assert trial.intermediate_values == {2: 0.2, 4: 0.4}


def test_a_resumed_sweep_does_not_repeat_its_first_draws(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=8, sampler={"random": {"seed": 3}})
    first = Session(searcher_of(study, tmp_path))
    first.run(4)
    second = Session(searcher_of(study, tmp_path, known=history_of(first), used=Used(trials=4)))
    second.run()
    assert len({point["distill.kdr.weight"] for point in first.points + second.points}) == 8


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("num_ended", [0, 3, 12])
def test_a_sweep_that_was_cut_off_goes_on_with_the_points_that_it_would_have_drawn(
    sampler: str, num_ended: int, tmp_path: Path
) -> None:
    study = study_with(WEIGHT, trials=15, sampler=sampler)
    undisturbed = Session(
        searcher_of(study, tmp_path / "one"), lambda point: point["distill.kdr.weight"]
    )
    undisturbed.run()
    first = Session(searcher_of(study, tmp_path / "two"), undisturbed.objective)
    first.run(num_ended)
    assert first.start()  # killed while this one runs, and while the next one is drawn
    first.searcher._sampler.propose()
    known, interrupted = history_of(first), first.points[-1:]
    second = Session(
        searcher_of(
            study,
            tmp_path / "two",
            known=known,
            interrupted=interrupted,
            used=Used(trials=num_ended + 1),
        ),
        first.objective,
    )
    second.run()
    assert first.points[:-1] + second.points == undisturbed.points


def test_the_log_alone_is_enough_to_go_on(tmp_path: Path) -> None:
    # none of its draws needs a repair
    study = study_with(WHOLE, trials=12, sampler={"tpe": {"seed": 2}})
    first = Session(searcher_of(study, tmp_path / "one"), peaked)
    first.run(10)
    trial_id = first.start()
    assert trial_id is not None
    first.finish(trial_id, epoch=2)
    second = Session(
        searcher_of(study, tmp_path / "two", known=history_of(first), used=Used(trials=11)), peaked
    )

    def told(folder: Path) -> list[tuple[Any, ...]]:
        trials = optuna_trials(folder)
        return sorted(
            (t.user_attrs["key"], t.state.name, t.values, t.params, t.intermediate_values)
            for t in trials
        )

    assert told(tmp_path / "two") == told(tmp_path / "one")
    second.run()
    assert len(second.started) == 1


def test_what_the_journal_holds_already_is_not_added_again(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=3)
    first = Session(searcher_of(study, tmp_path))
    first.run()
    for _ in range(2):
        searcher_of(study, tmp_path, known=history_of(first), used=Used(trials=3))
    assert len(optuna_trials(tmp_path)) == 3


def test_a_journal_of_another_space_is_begun_anew(tmp_path: Path) -> None:
    Session(searcher_of(study_with(CELLS_16, trials=3), tmp_path)).run()
    changed = study_with(
        CELLS_16 | {"distill.kdr.attention": {"choice": ["both", "none"]}}, trials=5
    )
    session = Session(searcher_of(changed, tmp_path, used=Used(trials=3)))
    session.run()
    assert len(session.started) == 2
    assert {trial.params["distill.kdr.attention"] for trial in optuna_trials(tmp_path)} <= {
        '"both"',
        '"none"',
    }


@pytest.mark.parametrize("torn", [b'{"op_code": 4, "worker', b"\x00\x00\xff", b'{"op_code": 4}'])
def test_a_journal_that_a_kill_tore_is_read_and_written_on(torn: bytes, tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=4)
    first = Session(searcher_of(study, tmp_path))
    first.run(2)
    with (tmp_path / "sweep.journal").open("ab") as journal:
        journal.write(torn)
    Session(searcher_of(study, tmp_path, known=first.searcher._known, used=Used(trials=2))).run()
    assert len(optuna_trials(tmp_path, TrialState.COMPLETE)) == 4


def test_a_journal_that_knows_what_the_log_has_forgotten_is_begun_anew(tmp_path: Path) -> None:
    study = study_with(WEIGHT, trials=3)
    first = Session(searcher_of(study, tmp_path))
    first.run()
    known = {
        key: known for key, known in first.searcher._known.items() if key != first.started[0].key
    }
    again = Session(
        searcher_of(
            study, tmp_path, known=known, used=Used(trials=3), interrupted=[first.started[0].point]
        )
    )
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "sweep.journal")))
    told = [
        str(trial.user_attrs.get("key"))
        for trial in optuna.load_study(study_name="sweep", storage=storage).trials
    ]
    assert sorted(told) == sorted(known)
    again.run()
    assert [trial.key for trial in again.started] == [first.started[0].key]
