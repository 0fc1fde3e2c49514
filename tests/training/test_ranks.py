"""Two gloo processes that train one trial together, beside one process that trains it alone."""

import itertools
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from kdr.config.distill import DistillConfig
from kdr.config.trial import Trial
from kdr.data.loader import EvaluationBatches
from kdr.detectors.checkpoint_files import open_student
from kdr.storage.layout import Storage
from kdr.training.evaluation import evaluate
from kdr.training.fit import fit
from kdr.training.metrics import EpochMetrics
from kdr.training.ranks import ALONE
from kdr.training.shared_parts import SharedParts
from kdr.training.training_state import prepare

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]
Together = Callable[..., list[list[EpochMetrics]]]

ON_ONE_RANK = """
import itertools, pickle, sys
import torch
from torch import distributed
from kdr.training.fit import fit
from kdr.training.ranks import Ranks

rank, meeting, task, result = int(sys.argv[1]), *sys.argv[2:]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
trial, storage, num_epochs = pickle.load(open(task, "rb"))
epochs = list(itertools.islice(fit(trial, storage=storage, ranks=Ranks.joined()), num_epochs))
pickle.dump(epochs, open(result, "wb"))
distributed.destroy_process_group()
"""


@pytest.fixture
def together(storage: Storage, tmp_path: Path, python_process: Callable[..., Any]) -> Together:
    """Trains a trial on two ranks and returns the metrics that each of them got."""

    def train(trial: Trial, num_epochs: int | None = None) -> list[list[EpochMetrics]]:
        (tmp_path / "task").write_bytes(pickle.dumps((trial, storage, num_epochs)))
        results = [tmp_path / f"epochs-{rank}" for rank in range(2)]
        meeting = tmp_path / "meeting"
        meeting.unlink(missing_ok=True)
        processes = [
            python_process(ON_ONE_RANK, rank, meeting, tmp_path / "task", results[rank])
            for rank in range(2)
        ]
        assert [process.wait(timeout=120) for process in processes] == [0, 0]
        return [pickle.loads(path.read_bytes()) for path in results]

    return train


@pytest.fixture(scope="session")
def comparable(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings for which the mean over shares of a batch is the mean over the batch."""
    path = tmp_path_factory.mktemp("weights") / "classifier.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), path)
    return {
        "student.norm": "frozen",
        "student.backbone_weights": str(path),
        "training.clip_norm": None,
        "training.optimizer": "sgd",
    }


def test_one_process_is_alone() -> None:
    assert ALONE.is_first
    assert ALONE.gathered("a") == ["a"]
    assert ALONE.from_first(lambda: 3) == 3


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one(
    make: Make, run: Run, together: Together, comparable: dict[str, Any]
) -> None:
    trial = make(comparable)
    alone = run(trial)
    first, second = together(trial)
    for mine, its in zip(first, alone, strict=True):
        assert mine.weighted_losses == pytest.approx(its.weighted_losses, abs=1e-5)
        assert mine.gradient_norms == pytest.approx(its.gradient_norms, rel=1e-3)
        assert (mine.step, mine.images_seen, mine.lr) == (its.step, its.images_seen, its.lr)
        assert mine.evaluation is not None
        assert its.evaluation is not None
        assert mine.evaluation.metrics == pytest.approx(its.evaluation.metrics, abs=0.02)
    assert [epoch.weighted_losses for epoch in first] == [epoch.weighted_losses for epoch in second]
    assert [epoch.evaluation for epoch in first] == [epoch.evaluation for epoch in second]


@pytest.mark.slow
def test_two_workers_in_two_passes_each_have_the_numbers_of_one_in_four(
    make: Make, run: Run, together: Together, comparable: dict[str, Any]
) -> None:
    trial = make(comparable | {"training.micro_batch": 2, "distill": {"kdr": {}, "mgd": {}}})
    alone = run(trial)
    first, second = together(trial)
    for mine, its in zip(first, alone, strict=True):
        assert mine.weighted_losses == pytest.approx(its.weighted_losses, abs=1e-5)
        assert mine.gradient_norms == pytest.approx(its.gradient_norms, rel=1e-3)
        assert mine.extras == pytest.approx(its.extras, rel=1e-3)
        assert mine.images_seen == its.images_seen
    assert [epoch.weighted_losses for epoch in first] == [epoch.weighted_losses for epoch in second]


@pytest.mark.slow
def test_two_workers_measure_the_weight_of_one(
    make: Make, run: Run, together: Together, comparable: dict[str, Any]
) -> None:
    trial = make(comparable | {"distill.kdr.calibrate": 0.4, "training.epochs": 1})
    (alone,) = run(trial)
    (first,), (second,) = together(trial)
    assert first.extras == second.extras
    assert first.extras == pytest.approx(alone.extras, rel=1e-3)
    assert first.weighted_losses == pytest.approx(alone.weighted_losses, rel=1e-3)


@pytest.mark.slow
def test_every_image_counts_once(
    make: Make, storage: Storage, shared: SharedParts, together: Together
) -> None:
    # the weights trained by two ranks, evaluated by one process
    trial = make({"training.epochs": 1, "student.norm_momentum": 0.1, "data.num_val": 7})
    (storage.trial(trial.key) / "checkpoint.pt").unlink(missing_ok=True)
    (metrics,), _ = together(trial)
    with (storage.trial(trial.key) / "student.pt").fetched("student.json") as path:
        student = open_student(path)
    index = shared.splits(trial.config.data).evaluation
    batches = EvaluationBatches(index, trial.config.data, batch_size=4)
    assert evaluate(student, batches, index, precision=torch.float32) == metrics.evaluation


@pytest.mark.slow
def test_two_processes_can_finish_a_trial_that_one_started(
    make: Make, run: Run, storage: Storage, together: Together, comparable: dict[str, Any]
) -> None:
    trial = make(comparable | {"seed": 4})
    whole = run(trial)
    first = next(fit(trial, storage=storage))
    assert (storage.trial(trial.key) / "checkpoint.pt").exists()
    finished, _ = together(trial)
    assert finished[0] == first
    assert finished[1].weighted_losses == pytest.approx(whole[1].weighted_losses, abs=1e-5)


ARMS: dict[str, dict[str, Any]] = {
    "off": {"distill": {}, "teacher": None},
    "default": {},
    "no links": {"distill.kdr.review_links": []},
    "one link": {"distill.kdr.review_links": ["P5->P4"]},
    "no attention": {"distill.kdr.attention": "none"},
    "spatial": {"distill.kdr.attention": "spatial"},
    "channel": {"distill.kdr.attention": "channel"},
    "gated": {"distill.kdr.fusion": "gated"},
    "not decoupled": {"distill.kdr.masks": "none"},
    "one scale": {"distill.kdr.pyramid_scales": [1]},
    "paper": {"distill.kdr.preset": "kdr-paper"},
    # shares P3 to P6 with RetinaNet and FCOS; what a student has beyond that learns from the
    # detector's losses alone
    "teacher of other levels": {"teacher.detector": "faster_rcnn"},
    "every method of features": {
        "distill": {name: {} for name in DistillConfig.model_fields if name != "frs"}
    },
    "frs": {"distill": {"frs": {}}},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arm", "detector"),
    [
        each
        for each in itertools.product(ARMS, ("retinanet", "fcos", "faster_rcnn"))
        if each != ("frs", "faster_rcnn")
    ],
)
def test_every_parameter_gets_a_gradient_in_every_step(
    make: Make, shared: SharedParts, arm: str, detector: str
) -> None:
    # DDP waits for the gradient of every parameter that requires one
    trial = make(
        ARMS[arm]
        | {"student.detector": detector}
        | ({"teacher.detector": detector} if arm == "frs" else {})
    )
    state = prepare(trial, shared, torch.device("cpu"), 0)
    batch = next(state.training.epoch(1))
    empty = replace(
        batch,
        boxes=tuple(torch.zeros(0, 4) for _ in batch.boxes),
        labels=tuple(label[:0] for label in batch.labels),
    )
    for given in (batch, empty):
        pixels = state.model.student.pixels(given.images, given.image_sizes)
        teacher = None if state.teacher is None else state.teacher.outputs(given, pixels)
        state.model.zero_grad()
        state.model(
            pixels, given.image_sizes, given.boxes, given.labels, teacher, 0
        ).total().backward()
        left_out = [
            name
            for name, parameter in state.model.named_parameters()
            if parameter.requires_grad and parameter.grad is None
        ]
        assert left_out == []
