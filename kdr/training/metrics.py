"""What one epoch of a trial measured: the one object that leaves `fit()`."""

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
"""The twelve numbers of the COCO evaluation, in its order."""


@dataclass(frozen=True)
class Evaluation:
    """COCO box metrics of one detector on one set of images."""

    metrics: dict[str, float]
    """The twelve COCO numbers by name, in [0, 1]; a number without ground truth to measure it on is
    left out."""
    ap_per_class: dict[str, float]
    """AP by category name, for categories that occur."""


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch of one trial."""

    epoch: int
    """Epochs finished, from 1."""
    step: int
    """Optimisation steps finished."""
    losses: dict[str, float]
    """Mean of every loss term over the epoch, unweighted."""
    weighted_losses: dict[str, float]
    """Mean of every loss term over the epoch, as it entered the total."""
    gradient_norms: dict[str, float]
    """Norm of the gradient at the FPN outputs in the epoch's last step: of the detection loss, of
    each method, and the total."""
    lr: float
    """Learning rate of the student at the epoch's last step."""
    seconds: float
    """Seconds of training, evaluation left out."""
    eval_seconds: float
    """Seconds of evaluation; 0 where none took place."""
    images_per_s: float
    """Training images per second."""
    images_seen: int
    """Training images since the first epoch."""
    peak_memory_bytes: int | None
    """Largest memory that tensors took on the GPU in this epoch; None on a CPU."""
    first_batch_hash: str
    """Hash of the epoch's first batch: equal for trials that are truly paired."""
    evaluation: Evaluation | None = None
    """COCO metrics; None in epochs without evaluation."""
    is_last: bool = False
    """Whether the trial has reached its full length."""
    extras: dict[str, float] = field(default_factory=dict)
    """Further numbers: of the methods, such as the scale of each review link, shares of keys
    loaded, the student's size."""
