"""Settings of one trial: a student, its teacher, the data, the distillation, the training and a
seed.
"""

from dataclasses import dataclass
from typing import Self

from pydantic import model_validator

from kdr.config.data import DataConfig
from kdr.config.detector import ANCHORS_PER_CELL, DetectorConfig
from kdr.config.distill import DistillConfig
from kdr.config.layout import tells_classes
from kdr.config.method import MethodConfig
from kdr.config.settings import NonNegative, Settings, Share
from kdr.config.training import TrainingConfig


class StudentConfig(DetectorConfig):
    """The detector that is trained."""

    inherit: bool = False
    """Start neck and head from the teacher's, where shapes match."""


class TeacherConfig(DetectorConfig):
    """The frozen detector that is learned from: it has `weights`, or the study trains it with
    `training` and keeps it.
    """

    training: TrainingConfig | None = None
    """How the study trains the teacher, once, before anything else."""
    seed: int = 0
    """Seed of the teacher's training; students of every seed learn from the same teacher."""
    labels: dict[str, str] | None = None
    """Category names of the teacher -> category names of the data set, where they differ."""
    stated_ap: Share | None = None
    """AP that the teacher is said to have on the validation set, such as 0.389; a study whose
    teacher misses it is not begun. Unset: it is measured before a study and told, but compared with
    nothing."""
    stated_ap_margin: NonNegative = 0.01
    """How far the measured AP may lie from the stated one; where it is measured on n of the images,
    by 1 / sqrt(n) more."""


NO_NUMBERS = frozenset({"stated_ap", "stated_ap_margin"})
"""Settings of a teacher that only check it."""


class TrialConfig(Settings):
    """Everything that changes the numbers of a trial. Placement and logging are not in it."""

    data: DataConfig
    """Images and boxes."""
    student: StudentConfig = StudentConfig()
    """The detector that is trained."""
    teacher: TeacherConfig | None = None
    """The detector that is learned from; not needed without distillation."""
    distill: DistillConfig = DistillConfig()
    """Distillation methods and their settings; {} is plain training."""
    training: TrainingConfig = TrainingConfig()
    """How the student is trained."""
    seed: int = 0
    """Seed of initial weights, order and augmentation."""

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher changes the numbers of this trial."""
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
                    f"teacher: {reason} needs a teacher, got none. Add one, or switch {reason} off"
                )
            if (self.teacher.weights is None) == (self.teacher.training is None):
                raise ValueError(
                    "teacher: needs weights or training, one of them, got "
                    f"{'neither' if self.teacher.weights is None else 'both'}. Name a weights "
                    "file or torchvision enum in teacher.weights, or say in teacher.training how "
                    "to train it"
                )
        if self.teacher is not None:
            methods = {
                name: _resolved(name, method, self.student, self.teacher)
                for name, method in self.distill.methods().items()
            }
            object.__setattr__(self, "distill", self.distill.with_changes(**methods))
        return self

    def teacher_trial(self) -> "TrialConfig | None":
        """The trial that trains this trial's teacher: plain training on the same data; None if the
        teacher has weights.
        """
        if not self.needs_teacher or self.teacher is None or self.teacher.training is None:
            return None
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
    """One trial with its identity. Two trials with equal keys have equal numbers, and only one of
    them is ever run.
    """

    key: str
    """Hash of everything that changes the numbers (`kdr.plan.keys`)."""
    config: TrialConfig
    data_id: str
    """Fingerprint of the data set."""
    teacher_id: str | None = None
    """Key of the teacher's trial, or the identity of its weights; None without a teacher."""

    @property
    def trained_teacher_key(self) -> str | None:
        """Key of the trial that trains this trial's teacher; None where the teacher comes with
        weights.
        """
        return self.teacher_id if self.config.teacher_trial() is not None else None


def _resolved(
    name: str, method: MethodConfig, student: DetectorConfig, teacher: DetectorConfig
) -> MethodConfig:
    """A method's settings for one pair of detectors, which must have what it needs."""
    needed = {"student_logits": ("student", student), "teacher_logits": ("teacher", teacher)}
    for need, (role, config) in needed.items():
        if need in method.needs() and config.detector not in ANCHORS_PER_CELL:
            raise ValueError(
                f"distill.{name}: needs class logits in every cell of the {role}, which "
                f"{' and '.join(ANCHORS_PER_CELL)} have, got {config.detector}. Choose one of "
                f"those for the {role}, or another method"
            )
    if "teacher_logits" in method.needs() and not tells_classes(
        teacher.weights_layout, detector=teacher.detector
    ):
        raise ValueError(
            f"distill.{name}: needs the teacher's class logits, got {teacher.weights_layout}'s "
            f"{teacher.detector}, whose class layer is not loaded. Choose a method of features, "
            "or another teacher"
        )
    return method.resolved(student=student, teacher=teacher)
