"""Settings that all distillation methods share."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from kdr.config.detector import DetectorConfig
from kdr.config.settings import NonNegative, Positive, Settings

Need = Literal["teacher_std", "teacher_logits", "student_logits"]
"""What a method may need besides the features: the teacher's standard deviations, class logits."""
Ramp = Literal["auto"] | Annotated[int, Field(ge=0)]
"""Steps of the ramp, the rise of a method's weight from 0."""


class MethodConfig(Settings):
    """Settings of every distillation method."""

    weight: NonNegative = 1.0
    """Factor of the method's loss terms."""
    ramp: Ramp = 0
    """Steps over which the weight rises from 0. `auto`: 500, or 5 % of all steps if that is
    fewer."""

    calibrate: Positive | None = None
    """Set the weight from gradients instead: such that the norm of the method's gradient at the
    student's FPN outputs is `calibrate` times that of the detector's own losses. Both are measured
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
            ValueError: if they cannot be used with this pair; the message starts with the path of
                the setting.
        """
        return self

    def canonical(self) -> dict[str, Any]:
        """Returns what determines the numbers, as plain values for the trial's key: without
        settings that are unset or have no effect.
        """
        unused = self.unused() | ({"weight"} if self.calibrate is not None else set())
        return self.model_dump(mode="json", exclude=unused, exclude_none=True)

    def ramp_steps(self, total_steps: int) -> float:
        """Returns the number of steps of the ramp in a training of `total_steps`."""
        return min(500.0, total_steps / 20) if self.ramp == "auto" else self.ramp
