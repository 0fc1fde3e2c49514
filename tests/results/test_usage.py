"""Hours and GPU-hours of a study."""

import pytest

from kdr.results.exclusion import exclude
from kdr.results.reader import read_log
from kdr.results.usage import gpu_hours_used, seconds_used
from tests.conftest import ExampleLog


def test_overlapping_attempts_share_hours_but_not_gpu_hours(example_log: ExampleLog) -> None:
    begin = example_log.time
    for key, num_gpus in (("a", 2.0), ("b", 1.0), ("c", None)):
        example_log.time = begin
        example_log.trial(key, num_gpus=num_gpus)
    log = read_log(example_log.storage)
    # each attempt has one row per second: started, four epochs, completed
    assert seconds_used(log, "example") == 5
    assert gpu_hours_used(log, "example") == pytest.approx(3 * 5 / 3600)
    assert gpu_hours_used(log, "another") == 0


def test_an_exclusion_long_after_the_trial_costs_nothing(example_log: ExampleLog) -> None:
    example_log.trial("a", num_gpus=1.0)
    exclude(example_log.storage, read_log(example_log.storage).states()["a"], "why")
    log = read_log(example_log.storage)
    assert seconds_used(log, "example") == 5
    assert gpu_hours_used(log, "example") == pytest.approx(5 / 3600)
