"""Keeps the weights of a study's best trials, and removes the others'. Teachers always stay."""

import math
from collections.abc import Iterable
from typing import Literal

from kdr.storage.layout import Storage


class KeptWeights:
    """Removes the weights of a study's trials as better trials end.

    The checkpoint of a trial that was stopped early counts as its weights: with it the trial can
    continue to its full length, without it the trial starts over.

    Args:
        storage: the storage with the trials' folders.
        keep: number of best trials to keep, "all" or "none".
        ended: (key, metric at the last epoch) of this study's trials that have already ended.
    """

    def __init__(
        self,
        storage: Storage,
        keep: int | Literal["all", "none"],
        ended: Iterable[tuple[str, float | None]] = (),
    ) -> None:
        self._storage = storage
        self._num_kept = math.inf if keep == "all" else 0 if keep == "none" else keep
        self._best: dict[str, float] = {}
        """Key -> metric of the trials whose weights stay, in the order in which they ended."""
        for key, value in ended:
            self.add(key, value)

    def add(self, key: str, value: float | None) -> None:
        """Adds a trial that ended, and removes weights that are no longer among the best. Among
        equal trials, the earlier one stays.

        Raises:
            StorageError: if they cannot be removed.
        """
        self._best[key] = -math.inf if value is None or math.isnan(value) else value
        if (self._storage.trial(key) / "student.pt").exists():
            # a completed trial needs no checkpoint; a process killed at its end may have left one
            self._storage.forget_progress(key)
        while len(self._best) > self._num_kept:
            # `min` takes the first of equal values; reversed, that is the trial that ended last
            worst = min(reversed(self._best), key=lambda other: self._best[other])
            del self._best[worst]
            self._storage.forget_weights(worst)
