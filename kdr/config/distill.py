"""Settings of the distillation methods, one class each. The methods themselves are in
`kdr/distill/`.
"""

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
"""Setting of a method -> the value that switches a part of it off."""


class KdrConfig(MethodConfig):
    """Knowledge review, foreground/background decoupling and pyramid pooling (Zhang and Pan,
    2023).
    """

    preset: Literal["kdr", "kdr-paper"] = "kdr"
    """Where the other settings get their defaults: `kdr` has the safer numerics, `kdr-paper` stays
    closest to the abstract."""
    weight: NonNegative = 3.0
    """Weight lambda of the method, in units of mean squared feature error."""
    foreground_share: Share = 2 / 3
    """Balance b: the loss is b x foreground + (1 - b) x background. Not used without masks."""
    review_links: Literal["all"] | tuple[str, ...] = "all"
    """Links `P5->P4` that pass a reviewed coarse level down to the next finer one; [] switches the
    review off. Links to or from a level whose stride the teacher does not have are dropped, with a
    warning."""
    attention: Literal["none", "spatial", "channel", "both"] = "both"
    """What the gates of a link look at."""
    fusion: Literal["residual", "gated"] = "residual"
    """`residual` adds the gated coarse level with a scale that starts at 0; `gated` mixes both
    levels."""
    gates: Literal["softmax", "sigmoid"] = "softmax"
    """`softmax` gates are convex over the two branches; `sigmoid` gates are independent, as in
    ReviewKD."""
    masks: Literal["boxes", "none"] = "boxes"
    """Decoupling: foreground cells from the ground-truth boxes, or no decoupling."""
    mask_values: Literal["area", "binary"] = "area"
    """Weight of a foreground cell: 1 over the cells of its box, or 1."""
    pyramid_scales: Annotated[tuple[Scale, ...], Field(min_length=1)] = ("full", 4, 2, 1)
    """Scales at which similarity is measured: `full`, and k for a k x k grid of means."""
    scales_below: Literal["side", "height"] = "side"
    """A scale k is used where k is smaller than the shorter side of the map, or than its height (as
    ReviewKD does)."""
    normalisation: Literal["teacher_std", "level_std", "none"] = "teacher_std"
    """Divide both features by the teacher's standard deviation, so that one weight serves every
    detector: by one number, its root mean square over levels (`teacher_std`), or by each level's
    own (`level_std`), so that levels of little spread weigh more."""
    align: Literal["conv1x1", "conv3x3", "identity"] = "conv1x1"
    """Adapter from the student's channels to the review's."""
    project: Literal["conv3x3", "conv1x1", "identity"] = "conv3x3"
    """Adapter from the review to the teacher's channels."""
    adapter_norm: Literal["none", "batch", "group"] = "none"
    """Normalisation in the adapters."""
    init: Literal["dirac", "kaiming"] = "dirac"
    """Initial weights of adapters with equal channels in and out: identity, or random."""
    upsample: Literal["nearest", "bilinear"] = "nearest"
    """How a coarse level is brought to the size of the finer one."""
    padding: Literal["ignored", "counted"] = "ignored"
    """Whether cells that only see padding count."""
    ramp: Ramp = "auto"
    """Steps over which the weight rises from 0; `auto`: 500, or 5 % of all steps if that is
    less."""

    @model_validator(mode="after")
    def _in_canonical_order(self) -> Self:
        # Sets in one order, and preset defaults filled in without marking them as set by the user.
        scales = tuple(
            sorted(
                set(self.pyramid_scales),
                key=lambda scale: -scale if isinstance(scale, int) else float("-inf"),
            )
        )
        update: dict[str, Any] = {"pyramid_scales": scales}
        if self.review_links != "all":
            if len(set(self.review_links)) < len(self.review_links):
                raise ValueError(f"review_links: each link once, got {list(self.review_links)}")
            update["review_links"] = tuple(sorted(self.review_links))
        if self.preset == "kdr-paper":
            update |= defaulted(self, _KDR_PAPER)
        for name, value in update.items():
            object.__setattr__(self, name, value)
        return self

    def needs(self) -> frozenset[Need]:
        """The spread of the teacher's features, where they are divided by it."""
        return frozenset({"teacher_std"} if self.normalisation != "none" else ())

    def resolved(self, *, student: DetectorConfig, teacher: DetectorConfig) -> Self:
        """The settings for one pair of detectors: `all` links spelled out, the preset's weight for
        that student.
        """
        links = review_links(student.detector)
        unknown = (
            []
            if self.review_links == "all"
            else [link for link in self.review_links if link not in links]
        )
        if unknown:
            raise ValueError(
                f"distill.kdr.review_links: {student.detector} has the links {', '.join(links)}, "
                f"got {', '.join(unknown)}"
            )
        if self.align == "identity" and student.fpn_channels != teacher.fpn_channels:
            raise ValueError(
                "distill.kdr.align: identity needs equal FPN channels of student and teacher, got "
                f"{student.fpn_channels} and {teacher.fpn_channels}. Use conv1x1"
            )
        # fine before coarse, so that two spellings of one set of links are one trial
        chosen = tuple(
            link for link in links if self.review_links == "all" or link in self.review_links
        )
        update: dict[str, Any] = {"review_links": chosen}
        if self.preset == "kdr-paper":
            update |= defaulted(self, {"weight": _PAPER_WEIGHT[student.detector]})
        return self.with_changes(**update)

    def unused(self) -> set[str]:
        """The preset's name, and what belongs to parts that are off."""
        unused: set[str] = {"preset"}
        if not self.review_links:
            unused |= {"attention", "fusion", "gates", "upsample"}
        if self.attention == "none":
            unused.add("gates")  # constant gates are 1/2 under both
        if self.masks == "none":
            unused |= {"foreground_share", "mask_values"}
        if self.pyramid_scales == ("full",):
            unused.add("scales_below")
        return unused


class DistillConfig(Settings):
    """Methods by name; their losses add up. Empty: plain training."""

    kdr: KdrConfig | None = None
    """Knowledge review, decoupling and pyramid pooling."""
    fitnet: FitnetConfig | None = None
    """Mean squared error of adapted features."""
    reviewkd: ReviewKdConfig | None = None
    """Knowledge review alone: fused levels, compared at several scales."""
    defeat: DefeatConfig | None = None
    """Foreground and background of the neck apart."""
    fgd: FgdConfig | None = None
    """Foreground and background under the teacher's attention, and global relations."""
    mgd: MgdConfig | None = None
    """The teacher's features generated from masked ones of the student."""
    pkd: PkdConfig | None = None
    """Pearson correlation of features."""
    cwd: CwdConfig | None = None
    """Each channel as a distribution over cells."""
    frs: FrsConfig | None = None
    """Features and class scores where the teacher is sure of a class."""

    def methods(self) -> dict[str, MethodConfig]:
        """The methods that are on, by name, in the order in which their losses are added."""
        return {
            name: method
            for name in type(self).model_fields
            if (method := getattr(self, name)) is not None
        }

    def needs(self) -> frozenset[Need]:
        """What the methods that are on need beside features."""
        return frozenset().union(*(method.needs() for method in self.methods().values()))
