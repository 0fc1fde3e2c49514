"""The metrics of one epoch: the one object that `fit()` yields."""

from dataclasses import dataclass, field

COCO_METRICS = (
    "AP",
    "AP50",
    "AP75",
    "APs",
    "APm",
    "APl",
    "AR1",
    "AR10",
    "AR100",
    "ARs",
    "ARm",
    "ARl",
)
"""The 12 COCO metrics, in the order of COCOeval's `stats`."""


@dataclass(frozen=True)
class Evaluation:
    """COCO box metrics of one detector on one set of images."""

    metrics: dict[str, float]
    """The COCO metrics by name, in [0, 1]; metrics without ground truth are left out."""
    ap_per_class: dict[str, float]
    """AP by category name, for categories with ground truth."""


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one trial."""

    epoch: int
    """Epochs finished, from 1."""
    step: int
    """Optimiser steps finished."""
    losses: dict[str, float]
    """Mean of every loss term over the epoch, unweighted."""
    weighted_losses: dict[str, float]
    """Mean of every loss term over the epoch, as it entered the total."""
    gradient_norms: dict[str, float]
    """Norm of the gradient at the FPN outputs in the epoch's last step: of the detection loss, of
    each method, and of the total."""
    lr: float
    """Learning rate of the student at the epoch's last step."""
    seconds: float
    """Seconds of training, without evaluation."""
    eval_seconds: float
    """Seconds of evaluation; 0 without one."""
    images_per_s: float
    """Training images per second."""
    images_seen: int
    """Training images since the first epoch."""
    peak_memory_bytes: int | None
    """Peak GPU memory of tensors in this epoch; None on a CPU."""
    first_batch_hash: str
    """Hash of the epoch's first batch: equal in trials that are paired."""
    evaluation: Evaluation | None = None
    """COCO metrics; None in epochs without evaluation."""
    is_last: bool = False
    """Whether this is the trial's last epoch."""
    extras: dict[str, float] = field(default_factory=dict)
    """Other numbers, such as the scale of each review link, the shares of loaded keys, and the
    number of the student's parameters."""
