"""A batch in several passes has the gradients, losses and norms of the whole batch.

And out-of-memory errors are detected and answered with smaller passes.
"""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from kdr.config.trial import Trial, TrialConfig
from kdr.data.loader import Batch, TrainingBatches
from kdr.detectors.detector import Detector
from kdr.errors import OutOfMemory
from kdr.storage.layout import Storage
from kdr.training.calibration import calibrate
from kdr.training.distilled_student import StepLosses
from kdr.training.fit import _add_gradients, fit
from kdr.training.loss_sums import LossSums
from kdr.training.metrics import EpochMetrics
from kdr.training.out_of_memory import halve_micro_batch, micro_batch_of, raising_out_of_memory
from kdr.training.ranks import Ranks
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import Pass, TrainingState, prepare

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]

OFF: dict[str, Any] = {"distill": {}, "teacher": None}
MEANS_OVER_IMAGES = ("kdr", "fitnet", "fgd", "mgd", "cwd")
"""Methods whose loss is a mean over images."""


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a student with frozen batch norm."""
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), path)
    return {"student.norm": "frozen", "student.backbone_weights": str(path)}


def drawn_batch(num_images: int) -> Batch:
    """Images of two sizes, each with some boxes."""
    draw = torch.Generator().manual_seed(0)
    sizes = tuple((64, 64) if number % 3 else (50, 40) for number in range(num_images))
    images = torch.zeros(num_images, 3, 64, 64, dtype=torch.uint8)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w] = torch.randint(256, (3, h, w), generator=draw, dtype=torch.uint8)
    counts = [1 + number % 4 for number in range(num_images)]
    corners = [torch.rand(count, 2, generator=draw) * 20 for count in counts]
    boxes = tuple(
        torch.cat([corner, corner + 6 + 12 * torch.rand(corner.shape, generator=draw)], 1)
        for corner in corners
    )
    labels = tuple(torch.randint(6, (count,), generator=draw) for count in counts)
    return Batch(images, sizes, sizes, tuple(range(num_images)), boxes, labels)


def gradients(
    state: TrainingState, passes: list[Pass], sums: LossSums | None = None
) -> list[Tensor]:
    """Gradients of all trained parameters after some passes, summed as in training."""
    state.model.train()
    state.model.zero_grad()
    for one in passes:
        _add_gradients(state, one, 7, sums or LossSums(), with_norms=False)
    return [
        parameter.grad.clone()
        for parameter in state.model.parameters()
        if parameter.grad is not None
    ]


def in_double(state: TrainingState) -> TrainingState:
    state.model.double()
    pixels = state.model.student.pixels
    state.model.student.pixels = lambda *given: pixels(*given).to(next(state.model.parameters()))  # type: ignore[method-assign]
    if state.teacher is not None:
        state.teacher = replace(state.teacher, detector=state.teacher.detector.double())
    return state


@given(num_images=st.integers(1, 40), micro_batch=st.integers(1, 40))
def test_images_are_dealt_to_passes_in_turn_and_sizes_differ_by_at_most_one(
    num_images: int, micro_batch: int
) -> None:
    batch = drawn_batch(num_images)
    state = SimpleNamespace(micro_batch=micro_batch, device=torch.device("cpu"))
    passes = TrainingState.passes(state, batch)  # type: ignore[arg-type]
    assert [image for one in passes for image in one.batch.image_ids] == [
        image for first in range(len(passes)) for image in range(first, num_images, len(passes))
    ]
    sizes = [len(one.batch) for one in passes]
    assert max(sizes) <= micro_batch
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-num_images // micro_batch)
    assert [one.weight * num_images for one in passes] == pytest.approx(sizes)
    assert [one.is_last for one in passes] == [False] * (len(passes) - 1) + [True]
    for one in passes:
        for row, image in enumerate(one.batch.image_ids):
            assert torch.equal(one.batch.images[row], batch.images[image])
            assert torch.equal(one.batch.boxes[row], batch.boxes[image])
            assert torch.equal(one.batch.labels[row], batch.labels[image])
            assert one.batch.image_sizes[row] == batch.image_sizes[image]


@given(
    values=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), min_size=1, max_size=6),
    data=st.data(),
)
def test_logged_losses_are_means_over_images_for_any_number_of_passes(
    values: list[list[float]], data: st.DataObject
) -> None:
    num_passes = data.draw(st.integers(1, 3))
    # each has as many images as passes, or a multiple
    steps = [step * num_passes for step in values]
    whole, divided = LossSums(), LossSums()
    for step in steps:
        whole.add(losses_of(step))
        for first in range(num_passes):
            part = step[first::num_passes]
            divided.add(losses_of(part), len(part) / len(step))
    for mine, its in zip(
        (*divided.means(), divided.mean_units()), (*whole.means(), whole.mean_units()), strict=True
    ):
        assert mine == pytest.approx(its, abs=1e-9)


def losses_of(images: list[float]) -> StepLosses:
    mean = torch.tensor(images, dtype=torch.float64).mean()
    return StepLosses({"classification": mean}, {}, [], {"unit.kdr": float(mean)})


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_passes_of_a_plain_retinanet_have_the_gradients_of_the_whole_batch(
    make: Make, shared: SharedParts, frozen: dict[str, Any], micro_batch: int
) -> None:
    state = in_double(
        prepare(make(OFF | frozen), shared, torch.device("cpu"), 0, micro_batch=micro_batch)
    )
    batch, of_whole, of_passes = drawn_batch(8), LossSums(), LossSums()
    whole = gradients(state, [Pass(batch)], of_whole)
    assert len(state.passes(batch)) > 1
    torch.testing.assert_close(gradients(state, state.passes(batch), of_passes), whole)
    for mine, its in zip(of_passes.means(), of_whole.means(), strict=True):
        assert mine == pytest.approx(its, rel=1e-12)
    state.model.float()
    whole = gradients(state, [Pass(batch)])
    scale = max(float(gradient.abs().max()) for gradient in whole)
    torch.testing.assert_close(
        gradients(state, state.passes(batch)), whole, rtol=1e-3, atol=1e-5 * scale
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", MEANS_OVER_IMAGES)
def test_passes_of_a_mean_over_images_have_the_gradients_of_the_whole_batch(
    make: Make, frozen: dict[str, Any], storage: Storage, method: str
) -> None:
    trial = make(frozen | {"distill": {method: {}}})
    # its own teacher, because it is converted to double precision
    state = in_double(prepare(trial, SharedParts(storage), torch.device("cpu"), 0, micro_batch=3))
    batch, of_whole, of_passes = drawn_batch(8), LossSums(), LossSums()
    whole = gradients(state, [Pass(batch)], of_whole)
    torch.testing.assert_close(
        gradients(state, state.passes(batch), of_passes), whole, rtol=1e-4, atol=1e-8
    )
    for mine, its in zip(of_passes.means(), of_whole.means(), strict=True):
        assert mine == pytest.approx(its, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
def test_passes_have_the_gradients_of_as_many_ranks_even_with_batch_statistics(
    make: Make, shared: SharedParts, detector: str
) -> None:
    # batch normalisation, FCOS's division by foreground cells, statistics over images, random masks
    methods: dict[str, Any] = {n: {} for n in ("kdr", "mgd", "pkd", "defeat", "reviewkd")}
    trial = make({"student.detector": detector, "distill": methods, "training.batch_size": 8})
    state = prepare(trial, shared, torch.device("cpu"), 0, micro_batch=2)
    index, data = shared.splits(trial.config.data).train, trial.config.data
    of_ranks = []
    for rank in range(4):
        batches = TrainingBatches(index, data, seed=0, batch_size=8, rank=rank, num_ranks=4)
        one_rank = replace(state, ranks=Ranks(rank, 4))
        of_ranks.append(gradients(one_rank, [Pass(next(batches.epoch(1)))]))
    means = [torch.stack(each).mean(0) for each in zip(*of_ranks, strict=True)]
    passes = state.passes(next(state.training.epoch(1)))
    assert len(passes) == 4
    torch.testing.assert_close(gradients(state, passes), means, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_one_pass_is_bit_identical_to_a_trial_without_micro_batch(make: Make, run: Run) -> None:
    trial = make({"training.epochs": 1})
    [plain] = run(trial)
    for micro_batch in (8, "auto"):
        [found] = run(make({"training.epochs": 1, "training.micro_batch": micro_batch}))
        assert found.extras == plain.extras | {"micro_batch": 8.0}
        assert comparable(found) == comparable(plain)
    assert "micro_batch" not in plain.extras


@pytest.mark.slow
def test_a_trial_in_passes_has_the_numbers_of_one_without(
    make: Make, run: Run, frozen: dict[str, Any]
) -> None:
    changes = frozen | {
        "training.clip_norm": None,
        "training.optimizer": "sgd",
        "training.epochs": 1,
    }
    [plain], [found] = run(make(changes)), run(make(changes | {"training.micro_batch": 3}))
    assert found.weighted_losses == pytest.approx(plain.weighted_losses, abs=1e-5)
    assert found.losses == pytest.approx(plain.losses, rel=1e-4)
    assert found.gradient_norms == pytest.approx(plain.gradient_norms, rel=1e-3)
    assert found.extras == pytest.approx(plain.extras | {"micro_batch": 3.0}, rel=1e-4)
    equal = ("step", "lr", "images_seen", "first_batch_hash")
    assert [getattr(found, name) for name in equal] == [getattr(plain, name) for name in equal]
    assert found.evaluation is not None
    assert plain.evaluation is not None
    assert found.evaluation.metrics == pytest.approx(plain.evaluation.metrics, abs=0.02)


def comparable(epoch: EpochMetrics) -> EpochMetrics:
    return replace(epoch, seconds=0.0, eval_seconds=0.0, images_per_s=0.0, extras={})


@pytest.mark.slow
def test_a_weight_calibrated_in_passes_is_that_of_whole_batches(
    make: Make, shared: SharedParts, frozen: dict[str, Any]
) -> None:
    trial = make(frozen | {"distill.kdr.calibrate": 0.4})
    weights = []
    for micro_batch in (None, 3):
        state = prepare(trial, shared, torch.device("cpu"), 0, micro_batch=micro_batch)
        calibrate(state, 0)
        weights.append(state.model.methods.weights["kdr"].value)
    assert weights[1] == pytest.approx(weights[0], rel=1e-4)


def test_no_forward_pass_has_more_images_than_are_set(
    make: Make, run: Run, shared: SharedParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    trial = make({"training.epochs": 1, "training.micro_batch": 3, "distill.kdr.calibrate": 0.4})
    # measured before counting: it is shared by all trials of this teacher
    shared.teacher_level_std(trial, torch.device("cpu"))
    detector = type(shared.teacher(trial, torch.device("cpu")))
    features = detector.features

    def counted(self: Detector, pixels: Tensor) -> list[Tensor]:
        seen.append(len(pixels))
        return features(self, pixels)

    monkeypatch.setattr(detector, "features", counted)
    run(trial)
    # 8 images in passes of 3, 3 and 2, by student and teacher: 2 batches to calibrate and 2 steps.
    # Then 6 images are evaluated.
    assert seen == [3, 3, 3, 3, 2, 2] * 4 + [3, 3]


ERRORS = {
    "torch's on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "Python's": MemoryError(),
    "the driver's": RuntimeError("CUDA error: out of memory"),
    "cuBLAS's": RuntimeError(
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    ),
    "C++'s": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_allocators_errors_become_out_of_memory_with_the_number_of_images(error: Exception) -> None:
    with (
        pytest.raises(
            OutOfMemory, match=r"16 images at a time; training\.micro_batch lowers that"
        ) as raised,
        raising_out_of_memory(16),
    ):
        raise error
    assert raised.value.num_images == 16
    again = pickle.loads(pickle.dumps(raised.value))
    assert (type(again), again.num_images, again.kind, str(again)) == (
        OutOfMemory,
        16,
        "out_of_memory",
        str(raised.value),
    )


@pytest.mark.parametrize("text", ["shapes differ", "could not create a primitive"])
def test_other_errors_keep_their_class(text: str) -> None:
    with pytest.raises(RuntimeError, match=text) as raised, raising_out_of_memory(16):
        raise RuntimeError(text)
    assert type(raised.value) is RuntimeError


@given(first=st.integers(1, 1000))
def test_auto_halves_down_to_one_image_and_then_fails(
    tmp_path_factory: pytest.TempPathFactory, first: int
) -> None:
    trial, storage = auto_trial(tmp_path_factory.mktemp("storage"), first)
    tried: list[int] = []
    num_images = micro_batch_of(trial, storage)
    while num_images is not None:
        tried.append(num_images)
        num_images = halve_micro_batch(trial, storage, OutOfMemory("full", num_images))
        assert num_images in (None, micro_batch_of(trial, storage))
    assert tried[0] == first
    assert tried[-1] == 1
    assert all(after == -(-before // 2) for before, after in itertools.pairwise(tried))
    assert micro_batch_of(trial, storage) == first  # no number fits: the next attempt starts over


def auto_trial(folder: Path, batch_size: int) -> tuple[Trial, Storage]:
    training = {"batch_size": batch_size, "micro_batch": "auto"}
    config = TrialConfig.model_validate({"data": {"dataset": "shapes"}, "training": training})
    return Trial(key="k", config=config, data_id="d"), Storage.at(folder)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_without_auto_nothing_is_halved(
    make: Make, storage: Storage, micro_batch: int | None
) -> None:
    trial = make(OFF | {"training.micro_batch": micro_batch})
    assert halve_micro_batch(trial, storage, OutOfMemory("full", 2)) is None
    assert micro_batch_of(trial, storage) == micro_batch


@pytest.mark.slow
def test_a_halved_micro_batch_is_used_by_the_next_attempt_and_removed_at_its_end(
    make: Make, run: Run, storage: Storage, shared: SharedParts
) -> None:
    [expected] = run(make(OFF | {"training.epochs": 1, "training.micro_batch": 2}))
    trial = make(OFF | {"training.epochs": 1, "training.micro_batch": "auto"})
    assert halve_micro_batch(trial, storage, OutOfMemory("full", 4)) == 2
    [found] = fit(trial, storage=storage, shared=shared)
    assert found.extras == expected.extras
    assert comparable(found) == comparable(expected)
    assert not storage.micro_batch(trial.key).exists()
