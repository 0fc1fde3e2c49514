"""Settings of one training run: length, batches, optimiser, schedule, precision."""

from typing import Any, Literal

from pydantic import model_validator

from kdr.config.settings import Count, NonNegative, Positive, Settings, Share


class TrainingConfig(Settings):
    """How a detector is trained."""

    epochs: Count = 12
    """Passes over the training images."""
    batch_size: Count = 16
    """Images per optimiser step, over all workers."""
    micro_batch: Count | Literal["auto"] | None = None
    """Images per worker in one forward and backward pass; the gradients of all passes add up to
    those of the batch. Unset: a worker's whole batch in one pass. `auto`: the whole batch, and
    after an out-of-memory error the trial resumes from its last checkpoint with half as many images
    per pass, down to one. The number of passes changes the trial's numbers, as the number of
    workers does: in the last digits, and by more if a loss or `norm: batch` depends on all images
    of a pass (docs/distributed.md). It is therefore a setting of the trial, not of `faults`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: Positive = 0.01
    """Peak learning rate."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    bias_lr_factor: Positive | None = None
    """Learning rate of the detector's biases in convolutions and linear layers, as a multiple of
    `lr`. Unset: 1. The original FCOS uses 2."""
    bias_weight_decay: NonNegative | None = None
    """Weight decay of these biases. Unset: `weight_decay`. The original FCOS uses 0."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "step"
    """Learning-rate schedule. `step` multiplies the rate by `step_factor` after
    each of `step_epochs`; `cosine` lowers it to 0; `one_cycle` is torch's OneCycleLR over the whole
    run, without a warm-up."""
    step_epochs: tuple[Count, ...] | None = None
    """Epochs after which `step` lowers the rate. Unset: after 2/3 and 11/12 of the epochs, such as
    8 and 11 of 12."""
    step_factor: Share = 0.1
    """Factor by which `step` multiplies the rate."""
    warmup_steps: int | None = None
    """Steps of linear warm-up. Unset: 500, or 5 % of all steps if that is fewer. Not used by
    `one_cycle`."""
    warmup_factor: Share = 1e-3
    """Learning rate at the first step of the warm-up, as a share of `lr`."""
    clip_norm: Positive | None = 35.0
    """Gradients are clipped to this norm, separately for the parameters of the student and of the
    distillation. null: no clipping."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward passes of student and teacher (autocast). Distillation distances are
    always computed in fp32."""
    channels_last: bool = False
    """Use the channels-last memory format, usually faster on GPUs with bf16 or fp16."""
    eval_every_epochs: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""

    def canonical(self) -> dict[str, Any]:
        """Returns the settings that determine the numbers, as plain values for the trial's key."""
        # added after the first keys were made: left out while unset, so that those keys stay valid
        later = ("bias_lr_factor", "bias_weight_decay", "micro_batch")
        return self.model_dump(
            mode="json", exclude={name for name in later if getattr(self, name) is None}
        )

    @model_validator(mode="after")
    def _pass_fits_batch(self) -> "TrainingConfig":
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch: must be at most batch_size, {self.batch_size}, got "
                f"{self.micro_batch}. Lower it, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _steps_are_valid(self) -> "TrainingConfig":
        if self.step_epochs is not None:
            if self.schedule != "step":
                raise ValueError(
                    f"step_epochs: must be used with schedule: step only, got {self.schedule}"
                )
            if list(self.step_epochs) != sorted(set(self.step_epochs)):
                raise ValueError(f"step_epochs: must increase, got {list(self.step_epochs)}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be 0 or more, got {self.warmup_steps}")
        return self
