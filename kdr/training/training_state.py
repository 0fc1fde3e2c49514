"""A trial made ready to train: student, teacher, methods, optimiser, schedule and batches, built from its settings."""

import logging
from dataclasses import dataclass

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


@dataclass
class TrainingState:
    """What changes while a trial trains, and what it trains on."""

    model: DistilledStudent
    parallel: nn.Module
    """The model as it is called in training: with several ranks, the wrapper that averages gradients."""
    ranks: Ranks
    teacher: FrozenTeacher | None
    """None where no method is on."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    training: TrainingBatches
    evaluation: EvaluationBatches
    device: torch.device
    precision: torch.dtype
    """Of autocast; float32 runs without."""
    memory_format: torch.memory_format
    loaded: dict[str, float]
    """Shares of keys that weights filled in the student, by `loaded.part` and `inherited.part`; empty without weights."""

    def close(self) -> None:
        """Ends the processes that load images."""
        self.training.close()
        self.evaluation.close()

    def losses(self, batch: Batch, step: int, *, model: nn.Module | None = None) -> StepLosses:
        """The loss terms of a batch.

        Args:
            batch: from the loader.
            step: optimisation steps finished so far.
            model: `parallel`; or `model`, whose gradients stay with this rank.
        """
        on_device = batch.to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            pixels = self.model.student.pixels(on_device.images, batch.image_sizes).contiguous(memory_format=self.memory_format)
            teacher = None if self.teacher is None else self.teacher.outputs(on_device, pixels)
            found: StepLosses = (model or self.parallel)(
                pixels, batch.image_sizes, on_device.boxes, on_device.labels, teacher, step
            )
        return found

    def numbers(self) -> dict[str, float]:
        """Further numbers for the log: of the methods by `method.name`, such as the residual scale of each of KDR's review
        links; which shares of the student's keys were loaded; and how many `parameters` the student has.
        """
        parameters = float(sum(parameter.numel() for parameter in self.model.student.parameters()))
        return {"parameters": parameters} | self.loaded | self.model.methods.logged_numbers()

    def parts(self) -> dict[str, Stateful]:
        """What a checkpoint holds."""
        parts: dict[str, Stateful] = {
            "model": self.model,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }
        measured = MeasuredWeights(self.model.methods)
        return parts | ({"weights": measured} if measured.state_dict() else {})


def prepare(trial: Trial, shared: SharedParts, device: torch.device, loader_workers: int, ranks: Ranks = ALONE) -> TrainingState:
    """Builds everything that one trial needs, at its beginning; a checkpoint is restored into `parts()`."""
    config = trial.config
    splits = shared.splits(config.data)
    loading = {"num_workers": loader_workers, "rank": ranks.rank, "num_ranks": ranks.count}
    batch_size = config.training.batch_size
    training = TrainingBatches(splits.train, config.data, seed=config.seed, batch_size=batch_size, **loading)
    evaluation = EvaluationBatches(splits.evaluation, config.data, batch_size=batch_size // ranks.count, **loading)
    teacher = shared.teacher(trial, device) if config.needs_teacher else None
    student, loaded = build_student(config, splits.categories, teacher)
    total_steps = config.training.epochs * len(training)
    methods = Methods({}, {})
    if teacher is not None:
        methods = _build_methods(trial, student, teacher, shared, device, ranks, total_steps=total_steps)
    memory_format = torch.channels_last if config.training.channels_last else torch.contiguous_format
    model = DistilledStudent(student, methods).to(device, memory_format=memory_format)  # type: ignore[call-overload]
    optimizer = make_optimizer(config.training, model.student, model.methods)
    return TrainingState(
        model=model,
        parallel=ranks.parallel(model, device),
        ranks=ranks,
        teacher=_frozen(teacher, student, config, splits.categories, device) if teacher is not None and len(methods) else None,
        optimizer=optimizer,
        schedule=make_schedule(config.training, optimizer, len(training)),
        scaler=torch.amp.GradScaler(device.type, enabled=config.training.precision == "fp16"),
        training=training,
        evaluation=evaluation,
        device=device,
        precision=AUTOCAST_DTYPES[config.training.precision],
        memory_format=memory_format,
        loaded=loaded,
    )


def build_student(
    config: TrialConfig, categories: tuple[str, ...], teacher: Detector | None
) -> tuple[Detector, dict[str, float]]:
    """The student before its first step, and what was loaded: initial weights from the seed, then files, then the teacher's."""
    student = build_detector(config.student, categories, seed=config.seed, new_classes=True)
    reports = [("loaded", report) for report in load_configured_weights(student)]
    if config.student.inherit and teacher is not None:
        reports.append(("inherited", inherit(student, teacher)))
    for _, report in reports:
        _log.info("student: %s", report.line())
    parts = {"loaded": ("backbone", "neck", "head"), "inherited": ("neck", "head")}
    return student, {f"{way}.{part}": getattr(report, part) for way, report in reports for part in parts[way]}


def _frozen(
    teacher: Detector, student: Detector, config: TrialConfig, categories: tuple[str, ...], device: torch.device
) -> FrozenTeacher:
    """The teacher, with what the methods ask of it."""
    assert config.teacher is not None
    classes = None
    if "teacher_logits" in config.distill.needs():
        classes = torch.tensor(match_labels(teacher.categories, categories, config.teacher.labels), device=device)
    alike = all(torch.equal(mine.cpu(), its.cpu()) for mine, its in ((student.mean, teacher.mean), (student.std, teacher.std)))
    return FrozenTeacher(teacher, alike, classes)


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
    if "teacher_std" in distill.needs():
        std = tuple(ranks.from_first(lambda: shared.teacher_level_std(trial, device)))
    setup = Setup(
        student=FeatureLevels(student.strides, student.channels),
        teacher=FeatureLevels(teacher.strides, teacher.channels),
        seed=trial.config.seed,
        total_steps=total_steps,
        rank=ranks.rank,
        num_ranks=ranks.count,
        teacher_std=std,
    )
    return build_methods(distill, setup)
