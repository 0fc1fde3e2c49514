import pytest

from kdr.errors import ConfigError
from kdr.results.reader import read_log
from kdr.results.trial_keys import find_trial


def test_a_key_may_be_shortened_while_it_is_clear_which_is_meant(example_log):
    for key in ("abcdef12", "abcdef34", "fedcba00"):
        example_log.trial(key)
    log = read_log(example_log.storage)
    assert find_trial(log, "abcdef12").key == "abcdef12"
    assert find_trial(log, "fedcba").key == "fedcba00"
    with pytest.raises(
        ConfigError, match=r"KEY: must be .*, got 'abcdef'\. 2 begin so: abcdef12, abcdef34"
    ):
        find_trial(log, "abcdef")
    with pytest.raises(
        ConfigError, match=r"at least 6 letters .*, got 'fedcb'\. Nearest: fedcba00"
    ):
        find_trial(log, "fedcb")


def test_a_key_of_an_empty_log_is_refused(example_log):
    with pytest.raises(ConfigError, match=r"got 'abcdef'\. Nearest: the log is empty"):
        find_trial(read_log(example_log.storage), "abcdef")
