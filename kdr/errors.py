"""Errors that a user can cause and fix; all others keep their traceback."""

from collections.abc import Iterable
from typing import Any


class KdrError(Exception):
    """An error whose message names the cause and the fix; the CLI prints it and exits with 2."""


class ConfigError(KdrError):
    """One or more invalid settings; the message has one line for each problem.

    Args:
        problems: lines of the form `<path of the setting>: <what must hold>, got <value>. <fix>`.
    """

    def __init__(self, problems: Iterable[str] | str) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class DataError(KdrError):
    """An unusable data set: a missing image, broken JSON, a duplicate id."""


class WeightsError(KdrError):
    """A weights file that is missing, unreadable, or for another detector."""


class StorageError(KdrError):
    """A storage that cannot be written, or a damaged file in it."""


class QueryError(KdrError):
    """An SQL statement that DuckDB rejects, or that returns no rows."""


class ResourcesError(KdrError):
    """A machine or cluster too small for one trial."""


class BusyError(KdrError):
    """A study that another process is running."""


class ClusterError(KdrError):
    """A cluster with nodes that are not ready for the study.

    Args:
        problems: one line each, with its fix.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        super().__init__("\n".join(f"cluster: {problem}" for problem in problems))


class PackageError(KdrError):
    """A package that a setting needs and that is missing or unusable."""


class PreflightError(KdrError):
    """A study that was not started because its pre-flight failed.

    Args:
        problems: the failed checks, one line each.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        fix = "The study was not started. To run it anyway, pass --no-preflight"
        super().__init__("\n".join([*(f"pre-flight: {problem}" for problem in problems), fix]))


class ShapeMismatchError(KdrError):
    """Two tensors whose shapes must match and do not."""


class TrialFailure(KdrError):  # noqa: N818 - a trial's outcome, not a mistake in the input
    """A trial that cannot continue; the study runs its other trials.

    Args:
        kind: the `failure_kind` in the log: `non_finite_loss`, `not_calibrated`, `out_of_memory`,
            `bad_data`, or `error`.
        reason: one sentence for the log.
    """

    def __init__(self, kind: str, reason: str) -> None:
        self.kind, self.reason = kind, reason
        super().__init__(f"{kind}: {reason}")

    # Ray pickles errors that cross a process boundary. By default, unpickling passes only the
    # message to `__init__`, which takes two arguments.
    def __reduce__(self) -> tuple[type["TrialFailure"], tuple[Any, ...]]:
        return TrialFailure, (self.kind, self.reason)


class OutOfMemory(TrialFailure):
    """A trial whose batches do not fit into memory.

    Args:
        reason: the allocator's message.
        num_images: images per process in one pass.
    """

    def __init__(self, reason: str, num_images: int) -> None:
        self.num_images = num_images
        super().__init__("out_of_memory", reason)

    def __reduce__(self) -> tuple[type["TrialFailure"], tuple[Any, ...]]:
        return OutOfMemory, (self.reason, self.num_images)
