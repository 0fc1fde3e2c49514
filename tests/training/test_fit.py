"""One trial: plain without methods, bit-identical when resumed, with a named failure."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet

from kdr.config.distill import DistillConfig
from kdr.config.trial import Trial
from kdr.data.loader import Batch, TrainingBatches
from kdr.detectors.build import torchvision_model
from kdr.detectors.checkpoint_files import open_student
from kdr.errors import TrialFailure
from kdr.randomness import address
from kdr.storage.layout import Storage
from kdr.training.fit import fit
from kdr.training.metrics import EpochMetrics
from kdr.training.shared_parts import SharedParts

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]

OFF: dict[str, Any] = {"distill": {}, "teacher": None}


def numbers(epochs: Iterable[EpochMetrics]) -> list[Any]:
    """The numbers that must be bit-identical in two runs of one trial."""
    return [
        (epoch.epoch, epoch.losses, epoch.weighted_losses, epoch.lr, epoch.evaluation)
        for epoch in epochs
    ]


def digest(module: nn.Module) -> str:
    state = {name: value.cpu().numpy().tobytes() for name, value in module.state_dict().items()}
    return hashlib.sha256(
        repr(
            sorted((name, hashlib.sha256(value).hexdigest()) for name, value in state.items())
        ).encode()
    ).hexdigest()


@pytest.mark.parametrize("detector", ["retinanet", pytest.param("fcos", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_without_distillation_losses_and_weights_are_those_of_a_plain_torchvision_loop(
    make: Make, run: Run, storage: Storage, shared: SharedParts, detector: str, optimizer: str
) -> None:
    changes = {
        "student.detector": detector,
        "training.optimizer": optimizer,
        "training.schedule": "constant",
        "training.warmup_steps": 0,
    }
    trial = make(OFF | changes)
    ours = run(trial)
    with (storage.trial(trial.key) / "student.pt").fetched("student.json") as path:
        student = open_student(path)

    config = trial.config
    torch.manual_seed(address(config.seed, "detector"))
    plain = torchvision_model(config.student, num_classes=6, _skip_resize=True)
    assert isinstance(plain, RetinaNet | FCOS)
    parameters = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4),
        "adamw": lambda: torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-4),
    }
    chosen = optimizers[optimizer]()
    index = shared.splits(config.data).train
    batches = TrainingBatches(
        index, config.data, seed=config.seed, batch_size=config.training.batch_size
    )
    for epoch in (1, 2):
        plain.train()
        sums: dict[str, float] = {}
        for batch in batches.epoch(epoch):
            images = [
                image[:, :h, :w] / 255
                for image, (h, w) in zip(batch.images, batch.image_sizes, strict=True)
            ]
            targets = [
                {"boxes": boxes, "labels": labels}
                for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
            ]
            losses = plain(images, targets)
            chosen.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 35.0)
            chosen.step()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach().double())
        assert ours[epoch - 1].losses == {
            name: value / len(batches) for name, value in sums.items()
        }
    for name, value in plain.state_dict().items():
        assert torch.equal(value, student.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_trial_stopped_after_an_epoch_resumes_bit_identically(
    make: Make, run: Run, storage: Storage, shared: SharedParts
) -> None:
    trial = make({"training.epochs": 3, "seed": 5})
    undisturbed = run(trial)
    weights = (storage.trial(trial.key) / "student.pt").read_bytes()
    for name in ("student.pt", "student.json"):
        (storage.trial(trial.key) / name).unlink()
    first = fit(trial, storage=storage, shared=shared)
    before = next(first)
    first.close()
    rest = list(fit(trial, storage=storage, shared=SharedParts(storage)))
    assert [epoch.epoch for epoch in rest] == [1, 2, 3]
    assert rest[0] == before
    assert numbers(rest) == numbers(undisturbed)
    assert (storage.trial(trial.key) / "student.pt").read_bytes() == weights


@pytest.mark.slow
def test_a_trial_is_bit_identical_as_first_and_as_fifth_of_its_process(
    make: Make, run: Run, storage: Storage
) -> None:
    trial = make({"training.epochs": 1})
    others = [make({"training.epochs": 1, "distill.kdr.weight": weight}) for weight in (0.5, 20.0)]
    fresh = SharedParts(storage)
    first = run(trial, shared=fresh)
    for other in [
        *others,
        make(OFF | {"training.epochs": 1}),
        make({"training.epochs": 1, "student.detector": "fcos"}),
    ]:
        run(other, shared=fresh)
    assert numbers(run(trial, shared=fresh)) == numbers(first)


@pytest.mark.slow
def test_training_with_all_methods_changes_nothing_in_the_teacher(
    make: Make, run: Run, shared: SharedParts
) -> None:
    trial = make(
        {"distill": {name: {} for name in DistillConfig.model_fields}, "training.epochs": 1}
    )
    teacher = shared.teacher(trial, torch.device("cpu"))
    before = digest(teacher)
    run(trial)
    assert digest(teacher) == before
    assert not teacher.training
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters()
    )


@pytest.mark.slow
def test_every_term_is_reported_unweighted_and_weighted_and_with_its_unit(
    make: Make, run: Run
) -> None:
    kdr = {"ramp": 0, "weight": 4.0, "foreground_share": 0.75, "normalisation": "none"}
    last = run(make({f"distill.kdr.{name}": value for name, value in kdr.items()}))[-1]
    assert set(last.losses) == {
        "classification",
        "bbox_regression",
        "kdr.foreground",
        "kdr.background",
    }
    assert last.weighted_losses["kdr.foreground"] == pytest.approx(
        3.0 * last.losses["kdr.foreground"]
    )
    assert last.weighted_losses["kdr.background"] == pytest.approx(
        1.0 * last.losses["kdr.background"]
    )
    assert last.weighted_losses["classification"] == last.losses["classification"]
    units = {name: value for name, value in last.extras.items() if name.startswith("unit.")}
    assert units == {
        f"unit.kdr.{region}.P{level}": value
        for region, value in (("foreground", 3), ("background", 1))
        for level in range(3, 8)
    }
    assert set(last.gradient_norms) == {"detection", "kdr", "total"}
    assert all(norm > 0 for norm in last.gradient_norms.values())


@pytest.mark.slow
def test_arms_with_one_seed_see_the_same_first_batches(make: Make, run: Run) -> None:
    hashes = [
        [epoch.first_batch_hash for epoch in run(make(changes))]
        for changes in ({}, OFF, {"distill.kdr.weight": 9.0})
    ]
    assert hashes[0] == hashes[1] == hashes[2]
    assert hashes[0] != [epoch.first_batch_hash for epoch in run(make({"seed": 1}))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        # 128 px: over a map of one cell oneDNN's bfloat16 weight gradient of a strided convolution
        # reads foreign memory
        {"training.precision": "bf16", "data.resize": {"square_px": 128}},
        {"training.channels_last": True},
        {"student.inherit": True},
        {"distill.kdr.preset": "kdr-paper", "student.detector": "fcos"},
        {"training.schedule": "cosine", "training.clip_norm": None},
    ],
)
def test_other_settings_train_too(make: Make, run: Run, changes: dict[str, Any]) -> None:
    last = run(make(changes | {"training.epochs": 1}))[-1]
    assert last.is_last
    assert last.evaluation is not None


@pytest.mark.slow
def test_only_due_epochs_and_the_last_are_evaluated(make: Make, run: Run) -> None:
    epochs = run(make(OFF | {"training.epochs": 3, "training.eval_every_epochs": 2}))
    assert [epoch.evaluation is not None for epoch in epochs] == [False, True, True]


@pytest.mark.slow
def test_the_shares_of_loaded_and_inherited_keys_are_reported(
    make: Make, run: Run, storage: Storage
) -> None:
    plain = make(OFF | {"training.epochs": 1})
    assert set(run(plain)[-1].extras) == {"parameters"}
    file = str(storage.trial(plain.key) / "student.pt")
    loaded = run(
        make(
            {"training.epochs": 1, "student.weights": file, "student.inherit": True, "distill": {}}
        )
    )[-1].extras
    assert {name: loaded[name] for name in ("loaded.backbone", "loaded.neck", "loaded.head")} == {
        "loaded.backbone": 1.0,
        "loaded.neck": 1.0,
        "loaded.head": 1.0,
    }
    assert loaded["inherited.head"] == 1.0
    assert 0 < loaded["inherited.neck"] < 1  # lateral convolutions differ with the backbone


def test_a_nan_loss_ends_the_trial_and_is_named(make: Make, run: Run) -> None:
    trial = make(
        OFF
        | {
            "training.optimizer": "sgd",
            "training.lr": 1e30,
            "training.clip_norm": None,
            "training.warmup_steps": 0,
        }
    )
    with pytest.raises(
        TrialFailure,
        match=r"non_finite_loss: .*(classification|bbox_regression).* is NaN or infinite in epoch",
    ):
        run(trial)


def test_running_out_of_memory_raises_out_of_memory(
    make: Make, storage: Storage, shared: SharedParts
) -> None:
    def starving(batches: Iterable[Batch], _count: int, _purpose: str) -> Iterator[Batch]:
        torch.empty(1 << 60, dtype=torch.uint8)  # the allocator's own error
        yield from batches

    trial = make(OFF | {"seed": 11})
    with pytest.raises(TrialFailure, match="out_of_memory"):
        list(fit(trial, storage=storage, shared=shared, track=starving))


@pytest.mark.slow
def test_a_finished_trial_leaves_its_weights_and_no_checkpoint(
    make: Make, run: Run, storage: Storage
) -> None:
    trial = make(OFF)
    [*_, last] = run(trial)
    folder = storage.trial(trial.key)
    assert (folder / "student.pt").exists()
    assert not (folder / "checkpoint.pt").exists()
    with (folder / "student.pt").fetched() as path:
        state = torch.load(path, weights_only=True)
    plain = torchvision_model(trial.config.student, num_classes=6)
    plain.load_state_dict(state, strict=True)
    assert last.extras["parameters"] == sum(parameter.numel() for parameter in plain.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("teacher", "student"),
    [("faster_rcnn", "retinanet"), ("fcos", "retinanet"), ("retinanet", "faster_rcnn")],
)
def test_detectors_of_different_kinds_share_the_levels_of_equal_stride(
    make: Make, run: Run, caplog: pytest.LogCaptureFixture, teacher: str, student: str
) -> None:
    epochs = run(
        make({"teacher.detector": teacher, "student.detector": student, "student.inherit": True})
    )
    assert epochs[-1].evaluation is not None
    assert epochs[-1].losses["kdr.foreground"] > 0
    dropped = {"faster_rcnn": "P7", "fcos": "", "retinanet": "P2"}[teacher]
    assert (f"student levels {dropped} learn nothing" in caplog.text) == bool(dropped)
    assert (epochs[-1].extras["inherited.neck"] > 0) == (teacher == "fcos")
    links = {name for name in epochs[-1].extras if name.startswith("kdr.zeta")}
    common = {
        "faster_rcnn": ["P4->P3", "P5->P4", "P6->P5"],
        "fcos": ["P4->P3", "P5->P4", "P6->P5", "P7->P6"],
    }
    assert links == {f"kdr.zeta.{link}" for link in common.get(teacher, common["faster_rcnn"])}
