"""Which students' weights stay on disk: of the study's best k, of all, or of none. Teachers always
stay.
"""

import math
from collections.abc import Iterable
from typing import Literal

from kdr.storage.layout import Storage


class KeptWeights:
    """Removes the weights of a study's trials as better ones come in.

    The checkpoint of an early-stopped trial counts as its weights: with it the trial can be
    continued to its full length, without it the trial starts again.

    Args:
        storage: where the trials' folders lie.
        keep: of how many best trials, "all", or "none".
        ended: (key, metric at the last epoch) of this study's trials that have ended before.
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
        for key, value in ended:
            self.add(key, value)

    def add(self, key: str, value: float | None) -> None:
        """A trial has ended: removes what is not among the best any more. Equal values: the earlier
        trial stays.

        Raises:
            StorageError: if it cannot be removed.
        """
        self._best[key] = -math.inf if value is None or math.isnan(value) else value
        if (self._storage.trial(key) / "student.pt").exists():
            self._storage.forget_progress(key)  # of a process that was killed before it could
        while len(self._best) > self._num_kept:
            worst = min(reversed(self._best), key=lambda other: self._best[other])
            del self._best[worst]
            self._storage.forget_weights(worst)
