"""Which trial starts next, compared with Ray's own scheduler."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray import tune
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from kdr.run.search.trial_order import InOrder
from tests.run.tune_stand_ins import FakeTuneTrial


@dataclass
class FakeController:
    """Tune's loop, as far as a scheduler sees it."""

    trials: Sequence[FakeTuneTrial]
    live: Sequence[FakeTuneTrial]

    def get_trials(self) -> Sequence[FakeTuneTrial]:
        return self.trials

    def get_live_trials(self) -> Sequence[FakeTuneTrial]:
        return self.live


@given(
    statuses=st.lists(
        st.sampled_from(["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]), max_size=8
    ),
    shuffler=st.randoms(),
)
def test_the_next_trial_is_the_choice_of_rays_own_scheduler(
    statuses: list[str], shuffler: Random
) -> None:
    trials = [FakeTuneTrial(str(number), status=status) for number, status in enumerate(statuses)]
    live = [trial for trial in trials if trial.status != "TERMINATED"]
    shuffler.shuffle(live)  # Tune keeps them in a set
    controller, scheduler = FakeController(trials, live), InOrder()
    for trial in [*trials, *live]:  # retried trials are added again
        scheduler.on_trial_add(None, trial)
    theirs = FIFOScheduler()  # type: ignore[no-untyped-call]
    expected: object = theirs.choose_trial_to_run(cast("TuneController", controller))
    assert scheduler.choose_trial_to_run(controller) is expected


def test_a_trial_comes_last_while_its_process_starts_but_not_when_it_is_retried() -> None:
    trials = [FakeTuneTrial(name, status="PENDING") for name in "ab"]
    controller, scheduler = FakeController(trials, trials), InOrder()

    def chosen() -> str:
        trial = scheduler.choose_trial_to_run(controller)
        assert trial is not None
        return trial.trial_id

    for trial in trials:
        scheduler.on_trial_add(None, trial)
    assert [chosen() for _ in range(3)] == ["a", "b", "a"]
    scheduler.on_trial_add(None, trials[1])
    assert [chosen() for _ in range(2)] == ["b", "a"]


class Numbers(Searcher):
    """A search over numbers."""

    def __init__(self, most: int) -> None:
        super().__init__(metric="done", mode="max")
        self.numbers = iter(range(most))

    def suggest(self, trial_id: str) -> Any:
        number = next(self.numbers, None)
        return self.FINISHED if number is None else {"number": number}

    def on_trial_complete(self, *_: object, **__: object) -> None: ...


@pytest.mark.ray
@pytest.mark.parametrize("searched", [False, True])
def test_a_starting_process_is_not_ended_for_another_trial_however_short_trials_are(
    searched: bool, tmp_path: Path, ray_here: None
) -> None:
    started = tmp_path / "started"
    started.mkdir()

    class Moment(tune.Trainable):
        """A trial that ends at once. Every process but the first takes a while to start."""

        def setup(self, config: dict[str, Any], *, folder: Path) -> None:  # type: ignore[override]
            (folder / str(os.getpid())).touch()
            time.sleep(3 if len(list(folder.iterdir())) > 1 else 0)

        def step(self) -> dict[str, Any]:
            time.sleep(0.1)
            return {"done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def save_checkpoint(self, checkpoint_dir: str) -> None: ...

    tuner = tune.Tuner(
        tune.with_parameters(Moment, folder=started),
        param_space={} if searched else {"number": tune.grid_search(list(range(60)))},
        tune_config=tune.TuneConfig(
            search_alg=Numbers(60) if searched else None,
            num_samples=-1 if searched else 1,
            scheduler=InOrder(),
            max_concurrent_trials=2,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=str(tmp_path / "ray"), verbose=0),
    )
    results = tuner.fit()
    assert results.errors == []
    assert len(results) == 60
    assert len(list(started.iterdir())) == 2
