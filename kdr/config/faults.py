"""How lost, hung and repeatedly failing trials are handled."""

from typing import Annotated

from pydantic import Field

from kdr.config.settings import Positive, Settings


class Faults(Settings):
    """How lost, hung and repeatedly failing trials are handled. None of these settings changes a
    trial's numbers.
    """

    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial that hangs, or loses its process or node, is resumed from its checkpoint
    within one run of the study. After that, the trial is `failed` and the study continues. A NaN
    loss, an unreadable image or an out-of-memory error fails a trial at once, without a retry; see
    `training.micro_batch: auto` for out of memory."""
    silence_s: Positive = 1800
    """Seconds without a finished batch after which a trial counts as hung. Its process is ended,
    and its stack traces are logged. Must exceed the longest pause between batches: opening the
    data, loading a teacher, scoring an evaluation."""
    abort_after: Annotated[int, Field(ge=0)] = 3
    """Abort the study when the first `abort_after` trials of a run all fail with the same error;
    0: never."""
