"""The pre-flight of a trial: checks teacher, levels, masks and losses in seconds, before training.

It builds its own teacher, student and methods, exactly as the trial will, and leaves nothing behind
that a trial would read.
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
from kdr.training.out_of_memory import raising_out_of_memory, release_memory
from kdr.training.pictures import write_masks
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import Pass, TrainingState, prepare

NUM_IMAGES = 4
"""Images in the single batch."""
MAX_VAL_IMAGES = 500
"""Maximum number of validation images on which the teacher is evaluated."""
MAX_SECONDS = 15.0
"""Seconds after which the teacher's evaluation starts no more batches."""


def measure(
    trial: Trial, *, storage: Storage, pictures: StoredPath, device: torch.device | None = None
) -> Preflight:
    """Measures everything that a pre-flight reports; random generators are restored.

    With `micro_batch: auto` it halves its images until they fit into memory, as a trial would.

    Args:
        trial: the trial. If the study trains its teacher, the teacher must be trained.
        storage: holds data, teachers and earlier measurements of teachers.
        pictures: folder for drawings of the masks.
        device: where to compute; by default a GPU if available.

    Raises:
        KdrError: for unusable data or weights.
        OutOfMemory: if the images do not fit.
        TrialFailure: of kind `bad_data`, if an image cannot be decoded; `not_calibrated`, as in
            training.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = trial.config.training
    num_images = first = min(NUM_IMAGES, training.batch_size)
    if isinstance(training.micro_batch, int):
        num_images = first = min(first, training.micro_batch)
    while True:
        try:
            with raising_out_of_memory(num_images):
                found = _measured(
                    _with_images(trial, num_images, device), storage, pictures, device
                )
            return found if num_images == first else replace(found, num_fit=num_images)
        except OutOfMemory:
            if training.micro_batch != "auto" or num_images == 1:
                raise
        release_memory()  # outside of `except`: the error holds frames, and they hold tensors
        num_images = -(-num_images // 2)


def _with_images(trial: Trial, num_images: int, device: torch.device) -> Trial:
    """Returns the trial with a batch of a few images, all in one pass."""
    training = trial.config.training
    few = training.with_changes(
        batch_size=num_images, micro_batch=None if training.micro_batch is None else num_images
    )
    if device.type == "cpu":
        few = few.with_changes(precision="fp32")  # 16 bits are slow on a CPU, and show nothing more
    return replace(trial, config=trial.config.with_changes(training=few))


def _measured(
    trial: Trial, storage: Storage, pictures: StoredPath, device: torch.device
) -> Preflight:
    # not lasting: statistics of a few images must not become those of all later trials
    shared = SharedParts(storage, lasting=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(address(trial.config.seed, "preflight"))
        state = prepare(trial, shared, device, loader_workers=0)
        try:
            found = _first_step(trial, state, shared, pictures)
        finally:
            state.close()
        # last, because it takes most of the time
        if trial.config.needs_teacher and not shared.teacher(trial, device).unloaded_head:
            AP, num_measured, num_val = _teacher_ap(
                trial, shared.teacher(trial, device), storage, state.precision
            )
            found = replace(found, teacher_ap=AP, num_measured=num_measured, num_val=num_val)
    return found


def _first_step(
    trial: Trial, state: TrainingState, shared: SharedParts, pictures: StoredPath
) -> Preflight:
    """Returns all measurements on the first batch."""
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
    # as in the last step, when ramps have ended: in the first, a ramped method has weight 0
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
    """Returns the student's levels that a method's gradient reaches."""
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
    """Returns every term as it enters the total."""
    terms = [term for of_method in losses.terms.values() for term in of_method]
    return {name: float(value.detach()) for name, value in losses.detection.items()} | {
        term.name: term.coefficient * float(term.value.detach()) for term in terms
    }


def _loaded(state: TrainingState, shared: SharedParts, trial: Trial) -> Iterator[str]:
    """Yields one line per source of weights."""
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
    """Yields one line per matched level: cells and channels of student and teacher."""
    for level, its in matched:
        assert teacher is not None
        H, W = features[level].shape[-2:]
        mine = f"{student.level_names[level]} ({H} x {W}, {student.channels[level]} channels)"
        yield (
            f"{mine} from {teacher.level_names[its]} (stride {teacher.strides[its]}, "
            f"{teacher.channels[its]} channels)"
        )


def _not_frozen(teacher: Detector, before: dict[str, Tensor]) -> Iterator[str]:
    """Yields the parts of the teacher that could be trained or have changed."""
    if teacher.training:
        yield "training mode"
    yield from (
        f"a gradient of {name}"
        for name, value in teacher.named_parameters()
        if value.requires_grad or value.grad is not None
    )
    yield from (
        f"a changed {name}"
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
    # without kdr, the cells that boxes touch; other methods weigh them in their own ways
    return tuple(
        map(
            str,
            write_masks(folder, batch, grids, values="binary" if kdr is None else kdr.mask_values),
        )
    )


def _teacher_ap(
    trial: Trial, teacher: Detector, storage: Storage, precision: torch.dtype
) -> tuple[float, int, int]:
    """Returns the teacher's AP, the number of images it was measured on, and the number of all
    images.

    Measured once per teacher and data set.
    """
    data = trial.config.data
    assert trial.config.teacher is not None
    # the settings that change the AP of the same teacher on the same data
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
    # classes that the data lacks keep None: their detections are dropped, not counted as wrong
    category_ids: list[int | None] = [None] * len(teacher.categories)
    for category_id, its in zip(
        index.category_ids,
        match_labels(teacher.categories, index.categories, config.teacher.labels),
        strict=True,
    ):
        category_ids[its] = category_id
    at_a_time = config.training.micro_batch if isinstance(config.training.micro_batch, int) else 8
    batches = EvaluationBatches(
        index.subset(range(min(MAX_VAL_IMAGES, len(index)))), config.data, batch_size=at_a_time
    )
    seen: list[int] = []
    rows = detection_rows(teacher, _in_time(batches, seen), category_ids, precision=precision)
    batches.close()
    # against the images that were reached in time, or the others would count as misses
    found = coco_evaluation(coco_ground_truth(index.subset(range(len(seen)))), rows)
    return found.metrics.get("AP", 0.0), len(seen)


def _in_time(batches: EvaluationBatches, seen: list[int]) -> Iterator[Batch]:
    """Yields the batches that start in time, and adds the ids of their images to `seen`."""
    end = time.monotonic() + MAX_SECONDS
    for batch in batches:
        seen += batch.image_ids
        yield batch
        if time.monotonic() > end:
            return
