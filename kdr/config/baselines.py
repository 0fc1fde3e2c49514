"""Settings of the methods that KDR is compared with; their defaults are from the papers."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from kdr.config.detector import ANCHORS_PER_CELL, DetectorConfig, level_names
from kdr.config.method import MethodConfig, Need, Ramp
from kdr.config.settings import NonNegative, Positive, Share, defaulted

# PKD on one-stage detectors, and FGD, MGD and PKD on Faster R-CNN, leave out the coarsest level
_WITHOUT_P7 = {"levels": ("P3", "P4", "P5", "P6")}
_WITHOUT_P6 = {"levels": ("P2", "P3", "P4", "P5")}


class BaselineConfig(MethodConfig):
    """Settings of a method whose defaults and feature levels depend on the student's detector."""

    method: ClassVar[str]
    """Name of the method."""
    for_student: ClassVar[dict[str, dict[str, Any]]] = {}
    """Student's detector -> defaults that differ from those of the fields."""

    levels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The student's feature levels to distil, such as [P3, P4]. Unset: as in the original
    (docs/methods.md)."""

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:  # noqa: ARG002 - used by overrides
        """Returns the settings for a pair of detectors: the defaults for the student, and its
        levels by name.
        """
        known = level_names(student.detector)
        usual = self.for_student.get(student.detector, {})
        wanted = self.levels or usual.get("levels", known)
        if unknown := [name for name in wanted if name not in known]:
            raise ValueError(
                f"distill.{self.method}.levels: must be levels of {student.detector} "
                f"({', '.join(known)}), got {', '.join(unknown)}"
            )
        # in a fixed order: the same levels in another order are the same trial, with the same key
        levels = tuple(name for name in known if name in wanted)
        return self.with_changes(**defaulted(self, usual) | {"levels": levels})

    def refuse_unequal_channels(
        self, setting: str, student: DetectorConfig, teacher: DetectorConfig, *, fix: str
    ) -> None:
        """Raises a ValueError if student and teacher differ in FPN channels."""
        if student.fpn_channels != teacher.fpn_channels:
            raise ValueError(
                f"distill.{self.method}{setting} needs equal FPN channels of student and teacher, "
                f"got {student.fpn_channels} and {teacher.fpn_channels}. {fix}"
            )


class FitnetConfig(BaselineConfig):
    """Mean squared error of adapted features (after Romero et al., ICLR 2015)."""

    method = "fitnet"

    align: Literal["conv1x1", "identity"] = "conv1x1"
    """Adapter from the student's channels to the teacher's. `identity`: no adapter; needs equal
    channels."""

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:
        """See `BaselineConfig.resolved`; also checks that channels are equal for `identity`."""
        if self.align == "identity":
            self.refuse_unequal_channels(".align: identity", student, teacher, fix="Use conv1x1")
        return super().resolved(student=student, teacher=teacher)


class ReviewKdConfig(MethodConfig):
    """Knowledge review: attention-based fusion and hierarchical context loss (Chen et al., CVPR
    2021).
    """


class DefeatConfig(BaselineConfig):
    """Decoupled features: foreground and background of the neck are distilled separately (Guo et
    al., CVPR 2021).
    """

    method = "defeat"

    foreground_weight: NonNegative = 4.0
    """Weight of half the foreground's mean squared error; the authors' value for COCO."""
    background_weight: NonNegative = 16.0
    """Weight of half the background's mean squared error; the authors' value for COCO."""


class FgdConfig(BaselineConfig):
    """Focal and global distillation (Yang et al., CVPR 2022). The weights multiply sums, not means,
    over cells and channels.
    """

    method = "fgd"
    for_student = {
        "fcos": {
            "foreground_weight": 1.6e-3,
            "background_weight": 8e-4,
            "attention_weight": 8e-4,
            "relation_weight": 8e-6,
            "temperature": 0.8,
        },
        "faster_rcnn": {
            "foreground_weight": 5e-5,
            "background_weight": 2.5e-5,
            "attention_weight": 5e-5,
            "relation_weight": 5e-7,
            **_WITHOUT_P6,
        },
    }

    foreground_weight: NonNegative = 1e-3
    """alpha, weight of the foreground. FCOS: 1.6e-3, Faster R-CNN: 5e-5."""
    background_weight: NonNegative = 5e-4
    """beta, weight of the background. FCOS: 8e-4, Faster R-CNN: 2.5e-5."""
    attention_weight: NonNegative = 5e-4
    """gamma, weight of the difference in attention. FCOS: 8e-4, Faster R-CNN: 5e-5."""
    relation_weight: NonNegative = 5e-6
    """lambda, weight of the global relations. FCOS: 8e-6, Faster R-CNN: 5e-7."""
    temperature: Positive = 0.5
    """tau, temperature of spatial and channel attention. FCOS: 0.8."""


class MgdConfig(BaselineConfig):
    """Masked generative distillation (Yang et al., ECCV 2022). The weight multiplies a sum, not a
    mean, over cells and channels.
    """

    method = "mgd"
    for_student = {"faster_rcnn": {"weight": 5e-7, "masked_share": 0.45, **_WITHOUT_P6}}

    weight: NonNegative = 2e-5
    """alpha. Faster R-CNN: 5e-7."""
    masked_share: Share = 0.65
    """lambda, the share of cells hidden from the generator. Faster R-CNN: 0.45."""


class PkdConfig(BaselineConfig):
    """Pearson correlation of features (Cao et al., NeurIPS 2022). There is no adapter, so student
    and teacher need equal FPN channels.
    """

    method = "pkd"
    for_student = {
        "retinanet": _WITHOUT_P7,
        "fcos": _WITHOUT_P7,
        "faster_rcnn": {"weight": 6.0, **_WITHOUT_P6},
    }

    weight: NonNegative = 10.0
    """Weight of every level. Faster R-CNN: 6."""

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:
        """See `BaselineConfig.resolved`; also checks that channels are equal."""
        fix = (
            "Set student.fpn_channels to the teacher's, or use a method with adapters, such as cwd"
        )
        self.refuse_unequal_channels(":", student, teacher, fix=fix)
        return super().resolved(student=student, teacher=teacher)


class CwdConfig(BaselineConfig):
    """Channel-wise distillation: KL divergence of each channel's softmax over cells (Shu et al.,
    ICCV 2021).
    """

    method = "cwd"

    weight: NonNegative = 10.0
    """Weight of every level."""
    temperature: Positive = 1.0
    """tau, temperature of the softmax over cells."""


class FrsConfig(BaselineConfig):
    """Feature richness score: features and class scores, weighted by the teacher's confidence in
    each cell (Du et al., NeurIPS 2021).
    """

    method = "frs"

    ramp: Ramp = "auto"
    """Steps over which the weight rises from 0. `auto`: 500, or 5 % of all steps if that is fewer.
    The original uses 500."""
    feature_weight: NonNegative = 0.005
    """Weight of the squared error of a cell's features, summed over channels."""
    score_weight: NonNegative = 0.02
    """Weight of the cross entropy of a cell's class scores, summed over its boxes and classes."""

    def needs(self) -> frozenset[Need]:
        """Requests class logits of both detectors."""
        return frozenset({"teacher_logits", "student_logits"})

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:
        """See `BaselineConfig.resolved`; also checks that both have the same number of boxes per
        cell.
        """
        # class scores are compared box by box, so both detectors need the same boxes in the same
        # order
        num_boxes = [ANCHORS_PER_CELL[detector.detector] for detector in (student, teacher)]
        if num_boxes[0] != num_boxes[1]:
            raise ValueError(
                "distill.frs: needs the same number of boxes per cell in student and teacher, got "
                f"{num_boxes[0]} ({student.detector}) and {num_boxes[1]} ({teacher.detector}). Use "
                "the same detector for both"
            )
        return super().resolved(student=student, teacher=teacher)
