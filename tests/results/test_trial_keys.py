"""Finding a trial by its key."""

import pytest

from kdr.errors import ConfigError
from kdr.results.reader import read_log
from kdr.results.trial_keys import find_trial
from tests.conftest import ExampleLog


def test_a_key_may_be_abbreviated_while_it_is_unique(example_log: ExampleLog) -> None:
    for key in ("abcdef12", "abcdef34", "fedcba00"):
        example_log.trial(key)
    log = read_log(example_log.storage)
    assert find_trial(log, "abcdef12").key == "abcdef12"
    assert find_trial(log, "fedcba").key == "fedcba00"
    with pytest.raises(
        ConfigError, match=r"KEY: must be .*, got 'abcdef'\. 2 keys match: abcdef12, abcdef34"
    ):
        find_trial(log, "abcdef")
    with pytest.raises(
        ConfigError, match=r"its first 6 or more characters, got 'fedcb'\. Nearest: fedcba00"
    ):
        find_trial(log, "fedcb")


def test_no_key_is_found_in_an_empty_log(example_log: ExampleLog) -> None:
    with pytest.raises(ConfigError, match=r"got 'abcdef'\. Nearest: the log is empty"):
        find_trial(read_log(example_log.storage), "abcdef")
