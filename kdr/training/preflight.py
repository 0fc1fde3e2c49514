"""The pre-flight of a trial: what can be wrong with teacher, levels, masks and losses, measured in
seconds, before it trains.

It builds a teacher, a student and methods of its own, as the trial will, and leaves nothing that a
trial would read.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from kdr.config.trial import Trial, TrialConfig
from kdr.data.coco import CocoIndex, coco_ground_truth
from kdr.data.labels import match_labels
from kdr.data.loader import Batch, EvaluationBatches
from kdr.data.splits import open_validation
from kdr.detectors.detector import Detector
from kdr.distill.levels import match_levels
from kdr.distill.method import weighted_sum
from kdr.errors import OutOfMemory
from kdr.randomness import address
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage
from kdr.training.calibration import calibrate
from kdr.training.distilled_student import StepLosses, gradient_norms
from kdr.training.evaluation import coco_evaluation, detection_rows
from kdr.training.findings import Preflight
from kdr.training.out_of_memory import out_of_memory_named, release_memory
from kdr.training.pictures import write_masks
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import Pass, TrainingState, prepare

NUM_IMAGES = 4
"""Images of the one batch."""
MOST_VAL_IMAGES = 500
"""Validation images on which the teacher is measured at most, and the seconds after which no
further batch is begun."""
MOST_SECONDS = 15.0


def measure(
    trial: Trial, *, storage: Storage, pictures: StoredPath, device: torch.device | None = None
) -> Preflight:
    """Measures what a pre-flight looks at; random generators are left as they were.

    With `micro_batch: auto` fewer images are looked at where they do not fit into memory, as a
    trial would.

    Args:
        trial: the trial. If the study trains its teacher, that has been done.
        storage: where data, teacher and measurements of it lie.
        pictures: folder for drawings of the masks.
        device: where to compute; a GPU if there is one.

    Raises:
        KdrError: for data or weights that cannot be used.
        OutOfMemory: if the images do not fit.
        TrialFailure: of kind `bad_data`, if an image cannot be decoded; `not_calibrated`, as
            training would.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = trial.config.training
    num_images = first = min(NUM_IMAGES, training.batch_size)
    if isinstance(training.micro_batch, int):
        num_images = first = min(first, training.micro_batch)
    while True:
        try:
            with out_of_memory_named(num_images):
                found = _measured(
                    _with_images(trial, num_images, device), storage, pictures, device
                )
            return found if num_images == first else replace(found, num_fit=num_images)
        except OutOfMemory:
            if training.micro_batch != "auto" or num_images == 1:
                raise
        release_memory()
        num_images = -(-num_images // 2)


def _with_images(trial: Trial, num_images: int, device: torch.device) -> Trial:
    """The trial with a batch of a few images, all of them in one pass."""
    training = trial.config.training
    few = training.with_changes(
        batch_size=num_images, micro_batch=None if training.micro_batch is None else num_images
    )
    if device.type == "cpu":
        few = few.with_changes(precision="fp32")  # 16 bits are slow there, and tell nothing more
    return replace(trial, config=trial.config.with_changes(training=few))


def _measured(
    trial: Trial, storage: Storage, pictures: StoredPath, device: torch.device
) -> Preflight:
    shared = SharedParts(storage, lasting=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(address(trial.config.seed, "preflight"))
        state = prepare(trial, shared, device, loader_workers=0)
        try:
            found = _first_step(trial, state, shared, pictures)
        finally:
            state.close()
        if trial.config.needs_teacher and not shared.teacher(trial, device).unloaded_head:
            AP, num_measured, num_val = _teacher_ap(
                trial, shared.teacher(trial, device), storage, state.precision
            )
            found = replace(found, teacher_ap=AP, num_measured=num_measured, num_val=num_val)
    return found


def _first_step(
    trial: Trial, state: TrainingState, shared: SharedParts, pictures: StoredPath
) -> Preflight:
    """Everything that the first batch tells."""
    teacher = None if state.teacher is None else state.teacher.detector
    before = (
        {}
        if teacher is None
        else {name: value.clone() for name, value in teacher.state_dict().items()}
    )
    state.model.train()
    batch = next(iter(state.training.epoch(1)))
    last_step = trial.config.training.epochs * len(state.training)
    calibrate(state, trial.config.seed)
    losses = state.losses(Pass(batch), last_step)
    norms = gradient_norms(losses)
    reached = _reached(losses)
    torch.autograd.backward(losses.total())
    matched = [] if teacher is None else match_levels(state.model.student.strides, teacher.strides)
    names = state.model.student.level_names
    return Preflight(
        losses=_values(losses),
        gradient_norms=norms,
        loaded=tuple(_loaded(state, shared, trial)),
        levels=tuple(_levels(state.model.student, teacher, losses.features, matched)),
        unreached=tuple(names[level] for level, _ in matched if level not in reached),
        not_frozen=() if teacher is None else tuple(_not_frozen(teacher, before)),
        pictures=(
            ()
            if teacher is None
            else _draw(trial.config, batch, losses, state.model.student, pictures)
        ),
    )


def _reached(losses: StepLosses) -> set[int]:
    """Levels of the student that a method's gradient reaches."""
    distillation = [weighted_sum(terms) for terms in losses.terms.values()]
    total = sum(distillation, start=torch.zeros((), device=losses.features[0].device))
    if not total.requires_grad:
        return set()
    gradients = torch.autograd.grad(total, losses.features, retain_graph=True, allow_unused=True)
    return {
        level
        for level, gradient in enumerate(gradients)
        if gradient is not None and bool(gradient.any())
    }


def _values(losses: StepLosses) -> dict[str, float]:
    """Every term as it enters the total."""
    terms = [term for of_method in losses.terms.values() for term in of_method]
    return {name: float(value.detach()) for name, value in losses.detection.items()} | {
        term.name: term.coefficient * float(term.value.detach()) for term in terms
    }


def _loaded(state: TrainingState, shared: SharedParts, trial: Trial) -> Iterator[str]:
    for way in ("loaded", "inherited"):
        shares = [f"{value:.0%} of the {name}" for name, value in _of_way(state.loaded, way)]
        if shares:
            yield f"student: {way} {', '.join(shares)}"
    if trial.config.needs_teacher:
        yield from (f"teacher: {line}" for line in shared.teacher_lines(trial))


def _of_way(loaded: dict[str, float], way: str) -> list[tuple[str, float]]:
    return [
        (name.partition(".")[2], value)
        for name, value in loaded.items()
        if name.startswith(f"{way}.")
    ]


def _levels(
    student: Detector,
    teacher: Detector | None,
    features: list[Tensor],
    matched: list[tuple[int, int]],
) -> Iterator[str]:
    """The student's levels with their cells and channels, and the teacher's level that each learns
    from.
    """
    for level, its in matched:
        assert teacher is not None
        H, W = features[level].shape[-2:]
        mine = f"{student.level_names[level]} ({H} x {W}, {student.channels[level]} channels)"
        yield (
            f"{mine} from {teacher.level_names[its]} (stride {teacher.strides[its]}, "
            f"{teacher.channels[its]} channels)"
        )


def _not_frozen(teacher: Detector, before: dict[str, Tensor]) -> Iterator[str]:
    if teacher.training:
        yield "training mode"
    yield from (
        f"a gradient of {name}"
        for name, value in teacher.named_parameters()
        if value.requires_grad or value.grad is not None
    )
    yield from (
        f"another {name}"
        for name, value in teacher.state_dict().items()
        if not torch.equal(value, before[name])
    )


def _draw(
    config: TrialConfig, batch: Batch, losses: StepLosses, student: Detector, folder: StoredPath
) -> tuple[str, ...]:
    grids = {
        name: (level.shape[-2], level.shape[-1])
        for name, level in zip(student.level_names, losses.features, strict=True)
    }
    kdr = config.distill.kdr
    return tuple(
        map(
            str,
            write_masks(folder, batch, grids, values="binary" if kdr is None else kdr.mask_values),
        )
    )


def _teacher_ap(
    trial: Trial, teacher: Detector, storage: Storage, precision: torch.dtype
) -> tuple[float, int, int]:
    """AP of the teacher, on how many of how many validation images; measured once per teacher and
    data set.
    """
    data = trial.config.data
    assert trial.config.teacher is not None
    decisive = repr((data.resize, trial.config.teacher.labels, precision))
    path = (
        storage.teacher(trial.teacher_id or "")
        / f"AP-{trial.data_id}-{address(0, decisive):x}.json"
    )
    if not path.exists():
        index = open_validation(data, storage)
        AP, num_measured = _measured_ap(trial.config, teacher, index, precision)
        with path.written_aside() as aside:
            aside.write_text(json.dumps([AP, num_measured, len(index)]))
    AP, num_measured, num_val = json.loads(path.read_text())
    return AP, num_measured, num_val


def _measured_ap(
    config: TrialConfig, teacher: Detector, index: CocoIndex, precision: torch.dtype
) -> tuple[float, int]:
    assert config.teacher is not None
    category_ids: list[int | None] = [None] * len(teacher.categories)
    for category_id, its in zip(
        index.category_ids,
        match_labels(teacher.categories, index.categories, config.teacher.labels),
        strict=True,
    ):
        category_ids[its] = category_id
    at_a_time = config.training.micro_batch if isinstance(config.training.micro_batch, int) else 8
    batches = EvaluationBatches(
        index.subset(range(min(MOST_VAL_IMAGES, len(index)))), config.data, batch_size=at_a_time
    )
    seen: list[int] = []
    rows = detection_rows(teacher, _in_time(batches, seen), category_ids, precision=precision)
    batches.close()
    found = coco_evaluation(coco_ground_truth(index.subset(range(len(seen)))), rows)
    return found.metrics.get("AP", 0.0), len(seen)


def _in_time(batches: EvaluationBatches, seen: list[int]) -> Iterator[Batch]:
    """The batches that begin within the time; the ids of their images are added to `seen`."""
    end = time.monotonic() + MOST_SECONDS
    for batch in batches:
        seen += batch.image_ids
        yield batch
        if time.monotonic() > end:
            return
