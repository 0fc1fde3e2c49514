"""Builds everything that a trial trains with from its settings: student, teacher, methods, data."""

import logging
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from kdr.config.trial import Trial, TrialConfig
from kdr.data.labels import match_labels
from kdr.data.loader import Batch, EvaluationBatches, TrainingBatches
from kdr.detectors.build import build_detector
from kdr.detectors.detector import Detector
from kdr.detectors.weights import inherit, load_configured_weights
from kdr.distill.method import FeatureLevels, Setup
from kdr.distill.methods import MeasuredWeights, Methods, build_methods
from kdr.training.checkpoint import Stateful
from kdr.training.distilled_student import DistilledStudent, StepLosses
from kdr.training.frozen_teacher import FrozenTeacher
from kdr.training.optimisation import AUTOCAST_DTYPES, make_optimizer, make_schedule
from kdr.training.ranks import ALONE, Ranks
from kdr.training.shared_parts import SharedParts

_log = logging.getLogger(__name__)


class Pass(NamedTuple):
    """Images that go through the networks together: a rank's share of a batch, or a part of it."""

    batch: Batch
    number: int = 0
    """p: the images p, p + P, p + 2P and so on of the rank's share."""
    num_passes: int = 1
    """P: passes of this step."""
    weight: float = 1.0
    """Share of the rank's images that are in this pass: means over passes, times their weights, add
    up to the mean over all images."""

    @property
    def is_last(self) -> bool:
        """Whether this pass completes the step's gradients."""
        return self.number == self.num_passes - 1


@dataclass
class TrainingState:
    """The changing state of a trial in training, and the data it trains on."""

    model: DistilledStudent
    parallel: nn.Module
    """The module to call in training: with several ranks, the wrapper that averages gradients."""
    ranks: Ranks
    teacher: FrozenTeacher | None
    """None without methods."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    training: TrainingBatches
    evaluation: EvaluationBatches
    device: torch.device
    precision: torch.dtype
    """dtype of autocast; float32 turns it off."""
    memory_format: torch.memory_format
    loaded: dict[str, float]
    """Shares of the student's keys filled from weights, by `loaded.part` and `inherited.part`; {}
    without weights."""
    micro_batch: int | None = None
    """Maximum number of images in a pass; None if not set: a rank's share of a batch is then one
    pass."""

    def close(self) -> None:
        """Ends the processes that load images."""
        self.training.close()
        self.evaluation.close()

    def passes(self, batch: Batch) -> list[Pass]:
        """Splits a batch into passes of nearly equal size; images are dealt to them in turn."""
        count = 1 if self.micro_batch is None else math.ceil(len(batch) / self.micro_batch)
        if count == 1:
            return [Pass(batch)]
        # sent at once: every P-th image is not contiguous in pinned memory
        on_device = batch.to(self.device)
        parts = [on_device.every(count, number) for number in range(count)]
        return [
            Pass(part, number, count, len(part) / len(batch)) for number, part in enumerate(parts)
        ]

    def losses(self, one: Pass, step: int, *, model: nn.Module | None = None) -> StepLosses:
        """Computes the loss terms of a pass.

        Args:
            one: a pass of a batch from the loader.
            step: optimiser steps finished so far.
            model: the module to call: `parallel` by default, or `model`, whose gradients stay on
                this rank.
        """
        batch = one.batch
        on_device = batch.to(self.device)
        # rank r of R has the images r, r + R, ... of a batch; its pass p of P has every P-th of
        # these: images r + R p, r + R p + R P, ...
        share = (
            self.ranks.rank + self.ranks.count * one.number,
            self.ranks.count * one.num_passes,
        )
        with torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        ):
            pixels = self.model.student.pixels(on_device.images, batch.image_sizes).contiguous(
                memory_format=self.memory_format
            )
            teacher = None if self.teacher is None else self.teacher.outputs(on_device, pixels)
            found: StepLosses = (model or self.parallel)(
                pixels, batch.image_sizes, on_device.boxes, on_device.labels, teacher, step, share
            )
        return found

    def numbers(self) -> dict[str, float]:
        """Returns additional numbers for the log.

        Those of the methods by `method.name`, such as the scale of each of KDR's review links; the
        shares of the student's keys that were loaded; the student's `parameters`; and the
        `micro_batch` in use, if set.
        """
        numbers = {
            "parameters": float(
                sum(parameter.numel() for parameter in self.model.student.parameters())
            )
        }
        if self.micro_batch is not None:
            numbers["micro_batch"] = float(self.micro_batch)
        return numbers | self.loaded | self.model.methods.logged_numbers()

    def parts(self) -> dict[str, Stateful]:
        """Returns the parts of a checkpoint by name."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        # a part only if there is something in it: checkpoints without `calibrate` have none
        measured = MeasuredWeights(self.model.methods)
        return parts | ({"weights": measured} if measured.state_dict() else {})


def prepare(
    trial: Trial,
    shared: SharedParts,
    device: torch.device,
    loader_workers: int,
    ranks: Ranks = ALONE,
    micro_batch: int | None = None,
) -> TrainingState:
    """Builds everything that a trial needs, in the state before its first step.

    Restore a checkpoint into its `parts()`.
    """
    config = trial.config
    splits = shared.splits(config.data)
    loading = {"num_workers": loader_workers, "rank": ranks.rank, "num_ranks": ranks.count}
    batch_size = config.training.batch_size
    training = TrainingBatches(
        splits.train, config.data, seed=config.seed, batch_size=batch_size, **loading
    )
    # evaluation keeps no graph, so the images of a training pass fit
    at_a_time = micro_batch or batch_size // ranks.count
    evaluation = EvaluationBatches(splits.evaluation, config.data, batch_size=at_a_time, **loading)
    teacher = shared.teacher(trial, device) if config.needs_teacher else None
    student, loaded = build_student(config, splits.categories, teacher)
    total_steps = config.training.epochs * len(training)
    methods = Methods({}, {})
    if teacher is not None:
        methods = _build_methods(
            trial, student, teacher, shared, device, ranks, total_steps=total_steps
        )
    memory_format = (
        torch.channels_last if config.training.channels_last else torch.contiguous_format
    )
    model = DistilledStudent(student, methods).to(device, memory_format=memory_format)  # type: ignore[call-overload]
    # after the move: the optimiser must hold the parameters on the device
    optimizer = make_optimizer(config.training, model.student, model.methods)
    return TrainingState(
        model=model,
        parallel=ranks.parallel(model, device),
        ranks=ranks,
        teacher=(
            _frozen(teacher, student, config, splits.categories, device)
            if teacher is not None and len(methods)
            else None
        ),
        optimizer=optimizer,
        schedule=make_schedule(config.training, optimizer, len(training)),
        scaler=torch.amp.GradScaler(device.type, enabled=config.training.precision == "fp16"),
        training=training,
        evaluation=evaluation,
        device=device,
        precision=AUTOCAST_DTYPES[config.training.precision],
        memory_format=memory_format,
        loaded=loaded,
        micro_batch=micro_batch,
    )


def build_student(
    config: TrialConfig, categories: tuple[str, ...], teacher: Detector | None
) -> tuple[Detector, dict[str, float]]:
    """Builds the student before its first step, and reports the shares of its keys loaded.

    Initial weights come from the seed, then from files, then from the teacher; the last one wins.
    """
    student = build_detector(config.student, categories, seed=config.seed, new_classes=True)
    reports = [("loaded", report) for report in load_configured_weights(student)]
    if config.student.inherit and teacher is not None:
        reports.append(("inherited", inherit(student, teacher)))
    for _, report in reports:
        _log.info("student: %s", report.line())
    parts = {"loaded": ("backbone", "neck", "head"), "inherited": ("neck", "head")}
    return student, {
        f"{way}.{part}": getattr(report, part) for way, report in reports for part in parts[way]
    }


def _frozen(
    teacher: Detector,
    student: Detector,
    config: TrialConfig,
    categories: tuple[str, ...],
    device: torch.device,
) -> FrozenTeacher:
    """Returns the teacher with the outputs that the methods need."""
    assert config.teacher is not None
    classes = None
    if "teacher_logits" in config.distill.needs():
        classes = torch.tensor(
            match_labels(teacher.categories, categories, config.teacher.labels), device=device
        )
    # weights of other libraries expect pixels on other scales
    shares_pixels = all(
        torch.equal(mine.cpu(), its.cpu())
        for mine, its in ((student.mean, teacher.mean), (student.std, teacher.std))
    )
    return FrozenTeacher(teacher, shares_pixels, classes)


def _build_methods(
    trial: Trial,
    student: Detector,
    teacher: Detector,
    shared: SharedParts,
    device: torch.device,
    ranks: Ranks,
    *,
    total_steps: int,
) -> Methods:
    distill, std = trial.config.distill, None
    # measured by rank 0 alone, so that all ranks divide by exactly the same values
    if "teacher_std" in distill.needs():
        std = tuple(ranks.from_first(lambda: shared.teacher_level_std(trial, device)))
    setup = Setup(
        student=FeatureLevels(student.strides, student.channels),
        teacher=FeatureLevels(teacher.strides, teacher.channels),
        seed=trial.config.seed,
        total_steps=total_steps,
        teacher_std=std,
    )
    return build_methods(distill, setup)
