"""What a user can cause and fix. Anything else keeps its traceback."""

from collections.abc import Iterable
from typing import Any


class KdrError(Exception):
    """A mistake in the input, with the way out in its message; the command line prints it and exits
    with code 2.
    """


class ConfigError(KdrError):
    """One or more settings that cannot be used; every problem found is in the message, one line
    each.

    Args:
        problems: lines of the form `<path of the setting>: <what must hold>, got <value>. <way
            out>`.
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(KdrError):
    """A data set that cannot be used as it is: a missing image, broken JSON, a duplicate id."""


class WeightsError(KdrError):
    """A weights file that is missing, unreadable, or does not fit the detector."""


class StorageError(KdrError):
    """A storage folder that cannot be written, or a file in it that is damaged."""


class QueryError(KdrError):
    """An SQL statement that the trial log cannot answer."""


class ResourcesError(KdrError):
    """A machine or cluster that is too small for one trial."""


class BusyError(KdrError):
    """A study that another process runs at this time."""


class ClusterError(KdrError):
    """A cluster whose nodes are not all ready for a study.

    Args:
        problems: what is in the way, with the way out, a line each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(f"cluster: {problem}" for problem in problems))


class PackageError(KdrError):
    """A package that a setting needs and that is missing, or cannot be used here."""


class PreflightError(KdrError):
    """A study whose pre-flight failed, and which was not begun.

    Args:
        problems: what failed, a line each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        way_out = "The study was not begun. Run it all the same with --no-preflight"
        super().__init__("\n".join([*(f"pre-flight: {problem}" for problem in problems), way_out]))


class ShapeMismatchError(KdrError):
    """Two tensors that had to agree in shape and do not."""


class TrialFailure(KdrError):  # noqa: N818 - a trial's end, not a mistake of the input
    """A trial that cannot go on; the study does.

    Args:
        kind: the class under which the log counts it: `non_finite_loss`, `not_calibrated`,
            `out_of_memory`, `bad_data`, or `error`.
        reason: one sentence for the log.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(f"{kind}: {reason}")

    def __reduce__(self) -> tuple[type["TrialFailure"], tuple[Any, ...]]:
        return TrialFailure, (self.kind, self.reason)


class OutOfMemory(TrialFailure):
    """A trial whose images do not fit into memory.

    Args:
        reason: what the allocator said.
        num_images: images of one process in one pass.
    """

    def __init__(self, reason: str, num_images: int) -> None:
        self.num_images = num_images
        super().__init__("out_of_memory", reason)

    def __reduce__(self) -> tuple[type["TrialFailure"], tuple[Any, ...]]:
        return OutOfMemory, (self.reason, self.num_images)
