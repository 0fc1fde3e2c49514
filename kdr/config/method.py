"""What the settings of all distillation methods share."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from kdr.config.detector import DetectorConfig
from kdr.config.settings import NonNegative, Positive, Settings

Need = Literal["teacher_std", "teacher_logits", "student_logits"]
"""What a method may need beside the features of both detectors: the spread of the teacher's
features, and class logits."""
Ramp = Literal["auto"] | Annotated[int, Field(ge=0)]


class MethodConfig(Settings):
    """The settings that every distillation method has."""

    weight: NonNegative = 1.0
    """Weight of the method: its terms are multiplied with it."""
    ramp: Ramp = 0
    """Steps over which the weight rises from 0; `auto`: 500, or 5 % of all steps if that is
    less."""

    calibrate: Positive | None = None
    """Measure the weight instead: the norm of the method's gradient at the student's FPN outputs,
    ramp aside, is this many times that of the detector's own losses, over the first 8 batches
    before the first step. `weight` is not used then, and what was measured is logged as
    `<method>.weight`. Unset: `weight` counts."""

    def needs(self) -> frozenset[Need]:
        """What the method has to be given beside features."""
        return frozenset()

    def unused(self) -> set[str]:
        """The settings that have no effect beside the others."""
        return set()

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:  # noqa: ARG002 - what most methods do
        """The settings for one pair of detectors, with what depends on them filled in.

        Raises:
            ValueError: if the pair cannot be distilled so; its message begins with the path of the
                setting.
        """
        return self

    def canonical(self) -> dict[str, Any]:
        """What decides the numbers: settings that are unset, or have no effect beside the others,
        are left out.
        """
        unused = self.unused() | ({"weight"} if self.calibrate is not None else set())
        return self.model_dump(mode="json", exclude=unused, exclude_none=True)

    def ramp_steps(self, total_steps: int) -> float:
        """Steps over which the weight rises from 0, in a training of `total_steps`."""
        return min(500.0, total_steps / 20) if self.ramp == "auto" else self.ramp
