"""Claims on trials, so that no trial is trained by drivers of two studies at once.

Studies share trials: a baseline, a teacher. Each driver keeps a file beside its claim on its study,
with the keys of the trials that it trains or is about to train. It adds a key to this file first,
then reads the files of all other live drivers, and withdraws the key if another driver has it. Two
drivers that want the same trial may both withdraw, but never both start.
"""

import contextlib
import json
import time
from collections.abc import Collection
from dataclasses import dataclass

from kdr.run.driver.sole_driver import Claim, Claims, trials_of
from kdr.storage.files import StoredPath, listed, store
from kdr.storage.layout import Storage
from kdr.storage.patience import patiently

_CHECKS, _CHECK_EVERY_S = 10, 0.1
"""How often, and every how many seconds, the driver with priority checks whether the other driver,
which claimed the trial at the same time, has withdrawn. If both simply withdrew, both would retry
at the same time again."""


@dataclass(frozen=True)
class Holder:
    """Another driver, and the trials that it trains."""

    study: str
    claim: Claim
    keys: frozenset[str]

    def __str__(self) -> str:
        return f"study {self.study} ({self.claim})"


class TrialClaims:
    """The trials that one driver trains. As a context manager, it releases them at the end.

    Args:
        storage: the study's storage.
        study: the study being run.
        driver: name of the driver's claim on the study, from `sole_driver`.
    """

    def __init__(self, storage: Storage, study: str, driver: str) -> None:
        self._storage, self._study, self._driver = storage, study, driver
        self._own: set[str] = set()
        self._others: dict[str, Claims] = {}

    def __enter__(self) -> "TrialClaims":
        return self

    def __exit__(self, *_: object) -> None:
        # if the storage is gone, the file stays: it counts only as long as its driver is alive
        with contextlib.suppress(OSError):
            trials_of(self._storage.drivers(self._study), self._driver).unlink(missing_ok=True)

    def take(self, keys: Collection[str]) -> set[str]:
        """Claims the trials that no other driver trains.

        Returns:
            The keys claimed by this driver, now or before.

        Raises:
            StorageError: if the storage is not writable.
        """
        new = set(keys) - self._own
        # a key that another driver has is not even written, so that waiting disturbs no driver
        new -= {key for holder in self.holders(new) for key in holder.keys}
        if not new:
            return self._own & set(keys)
        # write before reading, as with claims on studies: of two drivers that do so at the same
        # time, at least one sees the other
        self._write(self._own | new)
        for _ in range(_CHECKS):
            holders = self.holders(new)
            # the lower name has priority, so a driver that sees one withdraws at once
            if not holders or any(holder.claim.name < self._driver for holder in holders):
                break
            time.sleep(_CHECK_EVERY_S)
        # even with priority, this driver withdraws if the other one stays: that one had finished
        # checking before this one wrote, and already trains
        if holders:
            new -= {key for holder in holders for key in holder.keys}
            self._write(self._own | new)
        self._own |= new
        return self._own & set(keys)

    def release(self, key: str) -> None:
        """Releases a trial that has ended, or will not be trained after all."""
        if key in self._own:
            self._own.discard(key)
            self._write(self._own)

    def holders(self, keys: Collection[str]) -> list[Holder]:
        """Returns the other drivers that train any of these trials, or are about to, with the
        shared keys of each.
        """
        found = patiently(self._others_keys) if keys else []
        shared = (Holder(study, claim, of_it & frozenset(keys)) for study, claim, of_it in found)
        return [holder for holder in shared if holder.keys]

    def _others_keys(self) -> list[tuple[str, Claim, frozenset[str]]]:
        """Returns the other live drivers with their keys."""
        found = []
        for folder in listed(self._storage.studies_with_drivers):
            if folder.name != self._study:
                # kept between calls: it measures how long each driver has been silent
                claims = self._others.setdefault(folder.name, Claims(folder, folder.name))
                found += [
                    (folder.name, claim, _keys_of(folder, claim)) for claim in claims.living()
                ]
        return found

    def _write(self, keys: Collection[str]) -> None:
        text = json.dumps(sorted(keys))
        store(
            trials_of(self._storage.drivers(self._study), self._driver),
            lambda aside: aside.write_text(text, encoding="utf-8"),
        )


def _keys_of(folder: StoredPath, claim: Claim) -> frozenset[str]:
    # the driver has no trials yet or has just ended, or the file is not a driver's
    with contextlib.suppress(FileNotFoundError, ValueError):
        return frozenset(json.loads(trials_of(folder, claim.name).read_text(encoding="utf-8")))
    return frozenset()
