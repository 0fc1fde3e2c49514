"""Which trial starts next, beside Ray's own scheduler."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from kdr.run.search.trial_order import InOrder


@given(
    statuses=st.lists(
        st.sampled_from(["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]), max_size=8
    ),
    shuffler=st.randoms(),
)
def test_the_next_trial_is_the_one_that_rays_own_scheduler_would_start(statuses, shuffler):
    trials = [
        SimpleNamespace(trial_id=str(number), status=status)
        for number, status in enumerate(statuses)
    ]
    live = [trial for trial in trials if trial.status != "TERMINATED"]
    shuffler.shuffle(live)  # Tune keeps them in a set
    controller = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: live)
    scheduler = InOrder()
    for trial in [*trials, *live]:  # those that failed come again
        scheduler.on_trial_add(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is FIFOScheduler().choose_trial_to_run(
        controller
    )


def test_a_trial_is_passed_over_while_its_process_starts_and_not_when_it_failed_and_waits_again():
    first, second = [SimpleNamespace(trial_id=name, status="PENDING") for name in "ab"]
    controller, scheduler = SimpleNamespace(get_live_trials=lambda: [first, second]), InOrder()
    for trial in (first, second):
        scheduler.on_trial_add(controller, trial)
    assert [scheduler.choose_trial_to_run(controller).trial_id for _ in range(3)] == [
        "a",
        "b",
        "a",
    ]
    scheduler.on_trial_add(controller, second)
    assert [scheduler.choose_trial_to_run(controller).trial_id for _ in range(2)] == ["b", "a"]


class Numbers(Searcher):
    """A search over numbers."""

    def __init__(self, most: int) -> None:
        super().__init__(metric="done", mode="max")
        self.numbers = iter(range(most))

    def suggest(self, trial_id: str) -> Any:
        number = next(self.numbers, None)
        return self.FINISHED if number is None else {"number": number}

    def on_trial_complete(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.ray
@pytest.mark.parametrize("searched", [False, True])
def test_a_process_that_starts_is_not_ended_for_another_whatever_little_time_trials_take(
    searched, tmp_path, ray_here
):
    started = tmp_path / "started"
    started.mkdir()

    class Moment(tune.Trainable):
        """A trial that is over at once, in a process that takes a while to start but for the first
        one."""

        def setup(self, config: dict[str, Any], *, folder: Path) -> None:
            (folder / str(os.getpid())).touch()
            time.sleep(3 if len(list(folder.iterdir())) > 1 else 0)

        def step(self) -> dict[str, Any]:
            time.sleep(0.1)
            return {"done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    asked = {"search_alg": Numbers(60), "num_samples": -1} if searched else {}
    tuner = tune.Tuner(
        tune.with_parameters(Moment, folder=started),
        param_space={} if searched else {"number": tune.grid_search(list(range(60)))},
        tune_config=tune.TuneConfig(
            scheduler=InOrder(), max_concurrent_trials=2, reuse_actors=True, **asked
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "ray"), verbose=0),
    )
    results = tuner.fit()
    assert results.errors == []
    assert len(results) == 60
    assert len(list(started.iterdir())) == 2
