"""Settings of one training run: how long, with which optimiser and schedule, in which precision."""

from typing import Any, Literal

from pydantic import model_validator

from kdr.config.settings import Count, NonNegative, Positive, Settings, Share


class TrainingConfig(Settings):
    """How a detector is trained."""

    epochs: Count = 12
    """Passes over the training images."""
    batch_size: Count = 16
    """Images per optimisation step, over all workers."""
    micro_batch: Count | Literal["auto"] | None = None
    """Images of one worker in one forward and backward pass; the gradients of all passes add up to
    those of the batch. Unset: the whole batch of a worker in one pass. `auto`: the whole batch, and
    after an out-of-memory error half as many images per pass from the last checkpoint on, down to
    one. Passes change the numbers as several workers do: the last digits, and more where a loss or
    `norm: batch` looks at all images of a pass (docs/distributed.md). So it is part of the trial,
    not of `faults`."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    lr: Positive = 0.01
    """Peak learning rate."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 1e-4
    """Weight decay."""
    bias_lr_factor: Positive | None = None
    """Learning rate of the detector's biases in convolutions and linear layers, divided by `lr`;
    unset: 1. FCOS began with 2."""
    bias_weight_decay: NonNegative | None = None
    """Weight decay of these biases; unset: `weight_decay`. The first FCOS had 0."""
    schedule: Literal["constant", "step", "cosine", "one_cycle"] = "step"
    """Course of the learning rate: `step` multiplies it by `step_factor` after each of
    `step_epochs`, `cosine` falls to 0, `one_cycle` is torch's OneCycleLR over the whole run."""
    step_epochs: tuple[Count, ...] | None = None
    """Epochs after which `step` lowers the rate; unset: after 2/3 and 11/12 of the epochs, as 8 and
    11 of 12."""
    step_factor: Share = 0.1
    """Factor of each step."""
    warmup_steps: int | None = None
    """Steps of linear warm-up; unset: 500, or 5 % of all steps if that is less. Not used by
    `one_cycle`."""
    warmup_factor: Share = 1e-3
    """Share of the learning rate at the first step of the warm-up."""
    clip_norm: Positive | None = 35.0
    """Largest gradient norm, of the student's and of the distillation's parameters separately; null
    is off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of student and teacher; distances are always computed in fp32."""
    channels_last: bool = False
    """Channels-last memory format, usually faster on GPUs with bf16 or fp16."""
    eval_every_epochs: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""

    def canonical(self) -> dict[str, Any]:
        """What decides the numbers. What came with a later version is left out where it is unset,
        so that it changes no key.
        """
        later = ("bias_lr_factor", "bias_weight_decay", "micro_batch")
        return self.model_dump(
            mode="json", exclude={name for name in later if getattr(self, name) is None}
        )

    @model_validator(mode="after")
    def _pass_lies_inside(self) -> "TrainingConfig":
        if isinstance(self.micro_batch, int) and self.micro_batch > self.batch_size:
            raise ValueError(
                f"micro_batch: must be at most batch_size, {self.batch_size}, got "
                f"{self.micro_batch}. Lower it, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _steps_lie_inside(self) -> "TrainingConfig":
        if self.step_epochs is not None:
            if self.schedule != "step":
                raise ValueError(
                    f"step_epochs: only for schedule: step, got schedule {self.schedule}"
                )
            if list(self.step_epochs) != sorted(set(self.step_epochs)):
                raise ValueError(f"step_epochs: must rise, got {list(self.step_epochs)}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps: must be 0 or more, got {self.warmup_steps}")
        return self
