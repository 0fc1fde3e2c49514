"""No trial is trained by two drivers at once, of whatever study: each says which ones are its own,
and leaves the others' alone.

Studies share trials: a baseline, a teacher. Each driver keeps a file beside its claim of its study,
with the keys of the trials that it trains or is about to train. It writes a key there first, and
then looks at the files of all others that live; where it finds the key, it takes its own back. So
two that want one trial at once may both step back, and never both begin.
"""

import contextlib
import json
import time
from collections.abc import Collection
from dataclasses import dataclass
from types import TracebackType

from kdr.run.driver.sole_driver import Claim, Claims, trials_of
from kdr.storage.files import StoredPath, listed, store
from kdr.storage.layout import Storage
from kdr.storage.patience import patiently

_LOOKS, _LOOK_EVERY_S = 10, 0.1
"""How often and when whoever goes first looks whether the other one, who began at the same time,
has stepped back."""


@dataclass(frozen=True)
class Holder:
    """Another driver, and what it trains."""

    study: str
    claim: Claim
    keys: frozenset[str]

    def __str__(self) -> str:
        return f"study {self.study} ({self.claim})"


class TrialClaims:
    """The trials that one driver trains. As a context manager, it gives them back at the end.

    Args:
        storage: where everything lies.
        study: the study that is run.
        driver: name of the driver's claim of it, from `sole_driver`.
    """

    def __init__(self, storage: Storage, study: str, driver: str) -> None:
        self._storage, self._study, self._driver = storage, study, driver
        self._own: set[str] = set()
        self._others: dict[str, Claims] = {}

    def __enter__(self) -> "TrialClaims":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # a file that stays counts no more than its dead driver
            trials_of(self._storage.drivers(self._study), self._driver).unlink(missing_ok=True)

    def take(self, keys: Collection[str]) -> set[str]:
        """Claims those trials that no other driver trains.

        Returns:
            the keys that are this driver's, now or already.

        Raises:
            StorageError: if the storage cannot be written.
        """
        new = set(keys) - self._own
        new -= {key for holder in self.holders(new) for key in holder.keys}
        if not new:
            return self._own & set(keys)
        self._write(self._own | new)
        for _ in range(_LOOKS):
            holders = self.holders(new)
            if not holders or any(holder.claim.name < self._driver for holder in holders):
                break
            time.sleep(_LOOK_EVERY_S)
        if holders:
            new -= {key for holder in holders for key in holder.keys}
            self._write(self._own | new)
        self._own |= new
        return self._own & set(keys)

    def give_back(self, key: str) -> None:
        """A trial is over, or is not to be trained after all."""
        if key in self._own:
            self._own.discard(key)
            self._write(self._own)

    def holders(self, keys: Collection[str]) -> list[Holder]:
        """The other drivers that train some of these trials, or are about to; of their keys,
        these.
        """
        found = patiently(self._others_keys) if keys else []
        shared = (Holder(study, claim, of_it & frozenset(keys)) for study, claim, of_it in found)
        return [holder for holder in shared if holder.keys]

    def _others_keys(self) -> list[tuple[str, Claim, frozenset[str]]]:
        """The other drivers that live, with the keys of each."""
        found = []
        for folder in listed(self._storage.studies_with_drivers):
            if folder.name != self._study:
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
    # none yet, or it has just ended; or a file that is not a driver's
    with contextlib.suppress(FileNotFoundError, ValueError):
        return frozenset(json.loads(trials_of(folder, claim.name).read_text(encoding="utf-8")))
    return frozenset()
