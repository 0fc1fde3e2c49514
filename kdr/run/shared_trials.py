"""Trials that several running studies need: one study trains each trial, the others wait."""

import time
from collections.abc import Callable, Collection, Iterable

from kdr.results.reader import Log, read_log
from kdr.run.driver.interruption import GracePeriod, Terminated, end_by_exception
from kdr.run.driver.trial_claims import Holder
from kdr.run.study_driver import RunEnd, StudyDriver

_CHECK_EVERY_S = 2.0
"""Seconds between two checks of the trials that other drivers train."""


def run_claimed_first(
    driver: StudyDriver,
    wanted: Iterable[str],
    *,
    run: Callable[[Log, list[str]], RunEnd],
    missing: Callable[[Log], Collection[str]],
) -> tuple[RunEnd, set[str]]:
    """Runs the trials that this driver can claim. Then waits for trials of other drivers, and runs
    any that are still missing.

    Args:
        driver: the study's driver.
        wanted: keys of the trials, in order.
        run: runs the trials with these keys; receives the current log.
        missing: returns the keys of the trials that still have to run, given a log.

    Returns:
        How the run ended, and the keys of trials that no longer have to run here, because another
        driver completed them.
    """
    end, waiting, ended_by_others = RunEnd(), list(wanted), set[str]()
    while waiting and not end.is_final:
        claimed = driver.claims.take(waiting)
        # The order matters: once a trial is claimed, no other driver can complete it, so what this
        # log says about claimed trials stays true.
        past = read_log(driver.storage)
        still_missing = set(missing(past))
        for key in claimed - still_missing:
            driver.claims.release(key)
        ended_by_others |= set(waiting) - still_missing
        to_run = [key for key in waiting if key in claimed & still_missing]
        waiting = [key for key in waiting if key in still_missing - claimed]
        if to_run:
            end = end.then(run(past, to_run))
        elif waiting:
            end = end.then(wait_for_others(driver, waiting))
    return end, ended_by_others


def wait_for_others(driver: StudyDriver, keys: Collection[str]) -> RunEnd:
    """Waits until at least one of these trials is no longer trained by another driver. Holds no
    resources of the cluster meanwhile.
    """
    shown = ""
    try:
        with GracePeriod(0.0, end_by_exception):
            while set(keys) == _keys_of(holders := driver.claims.holders(keys)):
                text = f"Waiting for {_counted(keys)} trained by {', '.join(map(str, holders))}"
                if text != shown:
                    driver.observer.phase(text)
                    shown = text
                time.sleep(_CHECK_EVERY_S)
    except KeyboardInterrupt:
        return RunEnd(interrupted=True)
    except Terminated:
        return RunEnd(interrupted=True, terminated=True)
    if shown:
        driver.observer.phase("Continuing")
    return RunEnd()


def _keys_of(holders: Iterable[Holder]) -> set[str]:
    return {key for holder in holders for key in holder.keys}


def _counted(keys: Collection[str]) -> str:
    return "a trial" if len(keys) == 1 else f"{len(keys)} trials"
