"""Settings of one trial: student, teacher, data, distillation, training and seed."""

from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from kdr.config.data import DataConfig
from kdr.config.detector import ANCHORS_PER_CELL, DetectorConfig
from kdr.config.distill import DistillConfig
from kdr.config.layout import loads_class_layer
from kdr.config.method import MethodConfig
from kdr.config.settings import NonNegative, Settings, Share
from kdr.config.training import TrainingConfig


class StudentConfig(DetectorConfig):
    """The detector that the trial trains."""

    inherit: bool = False
    """Initialise neck and head with the teacher's weights, where shapes match."""


class TeacherConfig(DetectorConfig):
    """The frozen detector that the student learns from. Either it has `weights`, or the study
    trains it once with `training` and keeps it.
    """

    training: TrainingConfig | None = None
    """How to train the teacher, once, before the study's trials."""
    seed: int = 0
    """Seed of the teacher's training. It is independent of the trial's seed: students of all seeds
    learn from the same teacher."""
    labels: dict[str, str] | None = None
    """Category name of the teacher -> category name of the data set, for names that differ."""
    stated_ap: Share | None = None
    """AP that the teacher should have on the validation set, such as 0.389. The pre-flight measures
    its AP and stops the study if it differs by more than `stated_ap_margin`. Unset: the AP is
    measured and reported, but not compared."""
    stated_ap_margin: NonNegative = 0.01
    """Largest difference between measured and stated AP. If only n images are measured, 1 / sqrt(n)
    is added to it."""


NO_NUMBERS = frozenset({"stated_ap", "stated_ap_margin"})
"""Settings that check a teacher without changing what it computes; no key depends on them."""


class TrialConfig(Settings):
    """Everything that determines a trial's numbers. Resources, faults and logging do not, and are
    set outside of it.
    """

    data: DataConfig
    """Images and boxes to train and evaluate on."""
    student: StudentConfig = StudentConfig()
    """The detector that the trial trains."""
    teacher: TeacherConfig | None = None
    """The detector that the student learns from. Not needed without distillation."""
    distill: DistillConfig = DistillConfig()
    """Distillation methods and their settings; {}: plain training."""
    training: TrainingConfig = TrainingConfig()
    """How the student is trained."""
    seed: int = 0
    """Seed of the initial weights, the order of images, and augmentation."""

    @property
    def needs_teacher(self) -> bool:
        """Whether this trial's numbers depend on a teacher."""
        return self.student.inherit or bool(self.distill.methods())

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.needs_teacher:
            reason = (
                "student.inherit"
                if self.student.inherit
                else f"distill.{next(iter(self.distill.methods()))}"
            )
            if self.teacher is None:
                raise ValueError(
                    f"teacher: {reason} needs a teacher, got none. Add one, or switch off {reason}"
                )
            if (self.teacher.weights is None) == (self.teacher.training is None):
                raise ValueError(
                    "teacher: needs either weights or training, got "
                    f"{'neither' if self.teacher.weights is None else 'both'}. Set "
                    "teacher.weights to a file or torchvision enum, or teacher.training to train it"
                )
        if self.teacher is not None:
            methods = {
                name: _resolved(name, method, self.student, self.teacher)
                for name, method in self.distill.methods().items()
            }
            # Settings are frozen for users. Returning a changed copy is not an option: pydantic
            # ignores what this validator returns when the constructor is called.
            object.__setattr__(self, "distill", self.distill.with_changes(**methods))
        return self

    def teacher_trial(self) -> "TrialConfig | None":
        """Returns the trial that trains the teacher, plain training on the same data; None if there
        is no teacher, or it has weights.
        """
        if not self.needs_teacher or self.teacher is None or self.teacher.training is None:
            return None
        # `labels` does not matter here: the teacher trains on this data set itself
        detector = self.teacher.model_dump(
            mode="json", exclude={"training", "seed", *NO_NUMBERS, "labels"}
        )
        return TrialConfig(
            data=self.data,
            student=StudentConfig(**detector),
            training=self.teacher.training,
            seed=self.teacher.seed,
        )


@dataclass(frozen=True)
class Trial:
    """A trial and its key. Trials with equal keys have equal numbers, so only one of them runs."""

    key: str
    """Hash of everything that determines the numbers (`kdr.plan.keys`)."""
    config: TrialConfig
    data_id: str
    """Fingerprint of the data set."""
    teacher_id: str | None = None
    """Key of the teacher's trial, or identity of its weights; None without a teacher."""

    @property
    def trained_teacher_key(self) -> str | None:
        """Key of the trial that trains the teacher; None if the teacher has weights."""
        return self.teacher_id if self.config.teacher_trial() is not None else None


def _resolved(
    name: str, method: MethodConfig, student: DetectorConfig, teacher: DetectorConfig
) -> MethodConfig:
    """Returns a method's settings for a pair of detectors, after checking its needs."""
    needed = {"student_logits": ("student", student), "teacher_logits": ("teacher", teacher)}
    for need, (role, config) in needed.items():
        if need in method.needs() and config.detector not in ANCHORS_PER_CELL:
            raise ValueError(
                f"distill.{name}: needs a {role} with class logits in every cell "
                f"({' or '.join(ANCHORS_PER_CELL)}), got {config.detector}. Choose one of those as "
                f"the {role}, or another method"
            )
    if "teacher_logits" in method.needs() and not loads_class_layer(
        teacher.weights_layout, detector=teacher.detector
    ):
        raise ValueError(
            f"distill.{name}: needs the teacher's class logits, got {teacher.weights_layout}'s "
            f"{teacher.detector}, whose class layer is not loaded. Choose a feature-based method, "
            "or another teacher"
        )
    return method.resolved(student=student, teacher=teacher)
