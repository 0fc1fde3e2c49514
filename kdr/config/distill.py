"""Settings of KDR, and of all distillation methods by name."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from kdr.config.baselines import (
    CwdConfig,
    DefeatConfig,
    FgdConfig,
    FitnetConfig,
    FrsConfig,
    MgdConfig,
    PkdConfig,
    ReviewKdConfig,
)
from kdr.config.detector import DetectorConfig, review_links
from kdr.config.method import MethodConfig, Need, Ramp
from kdr.config.settings import NonNegative, Settings, Share, defaulted

Scale = Literal["full"] | Annotated[int, Field(ge=1)]
"""A pooling scale: `full` for the feature map itself, k for a k x k grid."""

_KDR_PAPER: dict[str, Any] = {
    "attention": "both",
    "fusion": "gated",
    "gates": "sigmoid",
    "adapter_norm": "batch",
    "init": "kaiming",
    "padding": "counted",
    "scales_below": "height",
    "normalisation": "none",
}
_PAPER_WEIGHT = {"retinanet": 3.0, "fcos": 4.8, "faster_rcnn": 1.5}


OFF: dict[str, Any] = {
    "review_links": [],
    "attention": "none",
    "masks": "none",
    "pyramid_scales": ["full"],
}
"""Setting of KDR -> the value that switches off a part of it."""


class KdrConfig(MethodConfig):
    """Knowledge review, foreground/background decoupling and pyramid pooling (Zhang and Pan,
    2023).
    """

    preset: Literal["kdr", "kdr-paper"] = "kdr"
    """Defaults of the other settings: `kdr` has the safer numerics, `kdr-paper` stays closest to
    the paper's abstract."""
    weight: NonNegative = 3.0
    """lambda, which multiplies the method's loss terms; these are mean squared feature errors."""
    foreground_share: Share = 2 / 3
    """b in the loss b x foreground + (1 - b) x background. Not used with `masks: none`."""
    review_links: Literal["all"] | tuple[str, ...] = "all"
    """Links such as `P5->P4`, which pass a reviewed level to the next finer one; []: no review.
    Links to or from a level whose stride the teacher does not have are dropped, with a warning."""
    attention: Literal["none", "spatial", "channel", "both"] = "both"
    """Inputs of a link's gates: the cell (`spatial`), the channel (`channel`), both (`both`), or
    nothing (`none`: constant gates of 1/2)."""
    fusion: Literal["residual", "gated"] = "residual"
    """How a link combines its levels: `residual` adds the gated coarse level with a learned scale
    that starts at 0; `gated` sums both gated levels."""
    gates: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax`: the gates of both levels add up to 1; `sigmoid`: they are independent, as in
    ReviewKD."""
    masks: Literal["boxes", "none"] = "boxes"
    """Decoupling: `boxes` separates foreground from background by the ground-truth boxes; `none`
    does not decouple."""
    mask_values: Literal["area", "binary"] = "area"
    """Weight of a foreground cell: `area`: 1 / cells of its box, `binary`: 1."""
    pyramid_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = ("full", 4, 2, 1)
    """Scales at which features are compared: `full` for the feature map itself, k for means over a
    k x k grid."""
    scales_below: Literal["side", "height"] = "side"
    """A scale k is used on a level if k is smaller than the shorter side of its map (`side`), or
    than its height (`height`, as in ReviewKD)."""
    normalisation: Literal["teacher_std", "level_std", "none"] = "teacher_std"
    """Divide the features of student and teacher by the teacher's standard deviation, so that one
    weight suits every detector. `teacher_std`: by one number, the root mean square over levels.
    `level_std`: by each level's own, which gives levels with a small spread more weight. `none`: do
    not divide."""
    align: Literal["conv1x1", "conv3x3", "identity"] = "conv1x1"
    """Adapter from the student's channels to those of the review."""
    project: Literal["conv3x3", "conv1x1", "identity"] = "conv3x3"
    """Adapter from the channels of the review to the teacher's."""
    adapter_norm: Literal["none", "batch", "group"] = "none"
    """Normalisation in the adapters."""
    init: Literal["dirac", "kaiming"] = "dirac"
    """Initial weights of adapters that have as many input as output channels: `dirac`: identity,
    `kaiming`: random."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """How a coarse level is resized to the finer one."""
    padding: Literal["ignored", "counted"] = "ignored"
    """Whether cells that cover only padding count in the loss."""
    ramp: Ramp = "auto"
    """Steps over which the weight rises from 0. `auto`: 500, or 5 % of all steps if that is
    fewer."""

    @model_validator(mode="after")
    def _in_canonical_order(self) -> Self:
        # Links and scales are sets: in a fixed order, equal sets are the same trial. The defaults
        # of the preset are set on the object itself, so that they do not count as set by the user.
        scales = tuple(
            sorted(
                set(self.pyramid_scales),
                key=lambda scale: -scale if isinstance(scale, int) else float("-inf"),
            )
        )
        update: dict[str, Any] = {"pyramid_scales": scales}
        if self.review_links != "all":
            if len(set(self.review_links)) < len(self.review_links):
                raise ValueError(
                    f"review_links: must not repeat a link, got {list(self.review_links)}"
                )
            update["review_links"] = tuple(sorted(self.review_links))
        if self.preset == "kdr-paper":
            update |= defaulted(self, _KDR_PAPER)
        for name, value in update.items():
            object.__setattr__(self, name, value)
        return self

    def needs(self) -> frozenset[Need]:
        """Requests the teacher's standard deviations, unless `normalisation` is `none`."""
        return frozenset({"teacher_std"} if self.normalisation != "none" else ())

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:
        """Returns the settings for a pair of detectors: `all` links by name, and the preset's
        weight for the student.
        """
        links = review_links(student.detector)
        unknown = (
            []
            if self.review_links == "all"
            else [link for link in self.review_links if link not in links]
        )
        if unknown:
            raise ValueError(
                f"distill.kdr.review_links: must be links of {student.detector} "
                f"({', '.join(links)}), got {', '.join(unknown)}"
            )
        if self.align == "identity" and student.fpn_channels != teacher.fpn_channels:
            raise ValueError(
                "distill.kdr.align: identity needs equal FPN channels of student and teacher, got "
                f"{student.fpn_channels} and {teacher.fpn_channels}. Use conv1x1"
            )
        # finest first: the same links in another order are the same trial, with the same key
        chosen = tuple(
            link for link in links if self.review_links == "all" or link in self.review_links
        )
        update: dict[str, Any] = {"review_links": chosen}
        if self.preset == "kdr-paper":
            update |= defaulted(self, {"weight": _PAPER_WEIGHT[student.detector]})
        return self.with_changes(**update)

    def unused(self) -> set[str]:
        """Returns the names of `preset` and of the settings of parts that are off."""
        unused: set[str] = {"preset"}
        if not self.review_links:
            unused |= {"attention", "fusion", "gates", "upsample"}
        if self.attention == "none":
            unused.add("gates")  # constant gates are 1/2 with either value
        if self.masks == "none":
            unused |= {"foreground_share", "mask_values"}
        if self.pyramid_scales == ("full",):
            unused.add("scales_below")
        return unused


class DistillConfig(Settings):
    """Distillation methods by name; their losses add up. Empty: plain training."""

    kdr: KdrConfig | None = None
    """Knowledge review, decoupling and pyramid pooling."""
    fitnet: FitnetConfig | None = None
    """Mean squared error of adapted features."""
    reviewkd: ReviewKdConfig | None = None
    """Knowledge review alone: fused levels, compared at several scales."""
    defeat: DefeatConfig | None = None
    """Foreground and background of the neck, separately."""
    fgd: FgdConfig | None = None
    """Foreground and background weighted by the teacher's attention, and global relations."""
    mgd: MgdConfig | None = None
    """The teacher's features, generated from the student's masked features."""
    pkd: PkdConfig | None = None
    """Pearson correlation of features."""
    cwd: CwdConfig | None = None
    """Each channel as a distribution over cells."""
    frs: FrsConfig | None = None
    """Features and class scores, weighted by the teacher's confidence."""

    def methods(self) -> dict[str, MethodConfig]:
        """Returns the active methods by name, in the order in which their losses are added."""
        return {
            name: method
            for name in type(self).model_fields
            if (method := getattr(self, name)) is not None
        }

    def needs(self) -> frozenset[Need]:
        """Returns everything that the active methods need besides features."""
        return frozenset().union(*(method.needs() for method in self.methods().values()))
