"""Settings that all distillation methods share."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from kdr.config.detector import DetectorConfig
from kdr.config.settings import NonNegative, Positive, Settings

Need = Literal["teacher_std", "teacher_logits", "student_logits"]
"""An input that a method may need besides features: the teacher's standard deviations, or class
logits."""
Ramp = Literal["auto"] | Annotated[int, Field(ge=0)]
"""Length of the ramp: steps over which a method's weight rises from 0."""


class MethodConfig(Settings):
    """Settings of every distillation method."""

    weight: NonNegative = 1.0
    """Factor by which the method's loss terms are multiplied."""
    ramp: Ramp = 0
    """Steps over which the weight rises from 0. `auto`: 500, or 5 % of all steps if that is
    fewer."""

    calibrate: Positive | None = None
    """Set the weight by gradient norm instead: the norm of the method's gradient at the student's
    FPN outputs becomes `calibrate` times that of the detector's own losses. Both norms are measured
    over the first 8 batches, before the first step and without the ramp. `weight` is then ignored;
    the measured weight is logged as `<method>.weight`. Unset: `weight` is used."""

    def needs(self) -> frozenset[Need]:
        """Returns what the method needs besides features."""
        return frozenset()

    def unused(self) -> set[str]:
        """Returns the names of the settings that have no effect, given the others."""
        return set()

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:  # noqa: ARG002 - for methods that override it
        """Returns the settings for a pair of detectors, with all values that depend on them.

        Raises:
            ValueError: if the settings cannot be used with this pair; the message starts with the
                path of the setting.
        """
        return self

    def canonical(self) -> dict[str, Any]:
        """Returns the settings that determine the numbers, as plain values for the trial's key:
        without those that are unset or have no effect.
        """
        unused = self.unused() | ({"weight"} if self.calibrate is not None else set())
        return self.model_dump(mode="json", exclude=unused, exclude_none=True)

    def ramp_steps(self, total_steps: int) -> float:
        """Returns the number of steps of the ramp in a training of `total_steps`."""
        return min(500.0, total_steps / 20) if self.ramp == "auto" else self.ramp
