"""What becomes of trials that lose a process, hang, or fail one like the other."""

from typing import Annotated

from pydantic import Field

from kdr.config.settings import Positive, Settings


class Faults(Settings):
    """What becomes of trials that lose a process, hang, or fail one like the other. Nothing here
    changes a trial's numbers.
    """

    retries: Annotated[int, Field(ge=0)] = 2
    """How often a trial goes on from its checkpoint, within one run of the study, after a process
    or node of it died or it hung; then it has failed, and the study goes on. A trial that fails by
    itself, by a loss that is NaN, an image that cannot be read or too little memory, has failed at
    once; of the last `training.micro_batch: auto` can make more attempts."""
    silence_s: Positive = 1800
    """Seconds without a finished batch after which a trial hangs: its process is ended, and what it
    was doing is in the log. What lies between batches must take less: opening the data, loading a
    teacher, scoring an evaluation."""
    abort_after: Annotated[int, Field(ge=0)] = 3
    """Abort the study when the first `abort_after` trials of a run all fail with the same error;
    0: never."""
