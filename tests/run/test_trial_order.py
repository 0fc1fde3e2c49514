"""Which trial starts next, beside Ray's own scheduler."""

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler

from kdr.run.trial_order import InOrder


@given(
    statuses=st.lists(st.sampled_from(["PENDING", "RUNNING", "PAUSED", "TERMINATED", "ERROR"]), max_size=8), shuffler=st.randoms()
)
def test_the_next_trial_is_the_one_that_rays_own_scheduler_would_start(statuses, shuffler):
    trials = [SimpleNamespace(trial_id=str(number), status=status) for number, status in enumerate(statuses)]
    live = [trial for trial in trials if trial.status != "TERMINATED"]
    shuffler.shuffle(live)  # Tune keeps them in a set
    controller, scheduler = SimpleNamespace(get_trials=lambda: trials, get_live_trials=lambda: live), InOrder()
    for trial in [*trials, *live]:  # those that failed come again
        scheduler.on_trial_add(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is FIFOScheduler().choose_trial_to_run(controller)
