"""A pre-flight's measurements on small real detectors; it leaves no trace in a trial."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdr.config.data import SHAPE_CLASSES
from kdr.config.detector import DetectorConfig
from kdr.config.trial import Trial
from kdr.data.coco import coco_ground_truth
from kdr.data.loader import Batch, EvaluationBatches
from kdr.data.splits import open_splits
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import save_student
from kdr.detectors.detector import Detector
from kdr.distill.masks import foreground_mask, padded_boxes, valid_cells
from kdr.errors import OutOfMemory
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.training import preflight
from kdr.training.evaluation import coco_evaluation, detection_rows, evaluate
from kdr.training.findings import Preflight, findings_of
from kdr.training.metrics import EpochMetrics
from kdr.training.pictures import MASK_PX, write_masks
from kdr.training.preflight import measure
from kdr.training.shared_parts import SharedParts

pytestmark = pytest.mark.slow  # all together, not each

Make = Callable[..., Trial]
Run = Callable[..., list[EpochMetrics]]

OFF: dict[str, Any] = {"distill": {}, "teacher": None}
CLASSES = SHAPE_CLASSES[:6]
EAGER = DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=32, anchor_scale=2)


@pytest.fixture
def look(storage: Storage, tmp_path: Path) -> Callable[[Trial], Preflight]:
    """Measures a trial on the CPU."""
    pictures = LocalPath(tmp_path / "pictures")
    return lambda trial: measure(
        trial, storage=storage, pictures=pictures, device=torch.device("cpu")
    )


@pytest.fixture(scope="session")
def eager() -> Detector:
    """An untrained detector that detects something everywhere, so that its AP is not 0."""
    detector = build_detector(EAGER, CLASSES, seed=0)
    with torch.no_grad():
        # different scores, without ties
        detector.model.get_parameter("head.classification_head.cls_logits.weight").mul_(30)
        detector.model.get_parameter("head.classification_head.cls_logits.bias").add_(4)
    return detector.eval()


def saved(detector: Detector, path: Path) -> dict[str, Any]:
    """Settings of a teacher with the weights of a detector."""
    save_student(LocalPath(path), detector, extra={})
    return {**EAGER.model_dump(exclude_unset=True), "weights": str(path)}


def failed(measured: Preflight, trial: Trial) -> dict[str, str]:
    return {
        finding.name: finding.text
        for finding in findings_of(measured, trial.config)
        if finding.state == "failed"
    }


def test_a_sound_trial_does_not_fail(make: Make, look: Any) -> None:
    trial = make()
    measured = look(trial)
    assert failed(measured, trial) == {}
    assert measured.num_measured == measured.num_val == 6
    assert measured.levels[0] == "P3 (8 x 8, 32 channels) from P3 (stride 8, 32 channels)"
    assert len(measured.levels) == 5
    assert measured.unreached == measured.not_frozen == ()
    assert measured.loaded == (f"teacher: all keys of the student.pt of trial {trial.teacher_id}",)


def test_losses_and_gradients_are_those_of_the_trials_first_step(
    make: Make, look: Any, run: Run
) -> None:
    trial = make(
        {
            "data.num_train": 4,
            "training.batch_size": 4,
            "training.epochs": 1,
            "distill.kdr.ramp": 0,
        }
    )
    measured, [epoch] = look(trial), run(trial)
    assert measured.losses == pytest.approx(epoch.weighted_losses, rel=1e-6)
    assert measured.gradient_norms == pytest.approx(epoch.gradient_norms, rel=1e-6)


def test_losses_have_their_weights_after_ramps(make: Make, look: Any) -> None:
    ramped, at_once = (look(make({"distill.kdr.ramp": steps})).losses for steps in (4, 0))
    assert ramped["kdr.foreground"] == pytest.approx(at_once["kdr.foreground"])
    assert ramped["kdr.foreground"] > 0


def test_a_calibrated_weight_is_measured_first(make: Make, look: Any) -> None:
    norms = look(
        make({"distill.kdr.calibrate": 0.5, "data.num_train": 4, "training.batch_size": 4})
    ).gradient_norms
    assert norms["kdr"] == pytest.approx(0.5 * norms["detection"], rel=1e-4)


@pytest.mark.slow
def test_a_trial_gives_the_same_bits_after_a_pre_flight(
    make: Make, look: Any, run: Run, storage: Storage
) -> None:
    trial = make({"teacher.seed": 5})
    state = torch.get_rng_state()
    look(trial)
    assert torch.equal(torch.get_rng_state(), state)
    kept = [path.name for path in storage.teacher(trial.teacher_id or "").iterdir()]
    assert not [name for name in kept if name.startswith("level-std")]
    after = [(epoch.losses, epoch.evaluation) for epoch in run(trial)]
    assert after == [
        (epoch.losses, epoch.evaluation) for epoch in run(trial, shared=SharedParts(storage))
    ]


def test_a_teacher_is_evaluated_on_the_validation_set_even_in_a_search(
    make: Make, look: Any, storage: Storage, eager: Detector, tmp_path: Path
) -> None:
    trial = make({"teacher": saved(eager, tmp_path / "eager.pt"), "data.search_split": 4})
    plain = trial.config.data.with_changes(search_split=0.0)
    index = open_splits(plain, storage).evaluation
    truth = evaluate(
        eager, EvaluationBatches(index, plain, batch_size=4), index, precision=torch.float32
    ).metrics["AP"]
    assert truth > 0
    measured = look(trial)
    assert (measured.teacher_ap, measured.num_measured) == (pytest.approx(truth), 6)


def test_a_teachers_classes_are_matched_by_name(
    make: Make, look: Any, storage: Storage, eager: Detector, tmp_path: Path
) -> None:
    order = [3, 1, 5, 0, 4, 2]
    other = build_detector(EAGER, [*(CLASSES[i] for i in order[:5]), "moon"], seed=0)
    other.model.load_state_dict(eager.model.state_dict())
    trial = make(
        {"teacher": {**saved(other, tmp_path / "other.pt"), "labels": {"moon": CLASSES[order[5]]}}}
    )
    data = trial.config.data
    index = open_splits(data, storage).evaluation
    rows = detection_rows(
        eager,
        EvaluationBatches(index, data, batch_size=8),
        [index.category_ids[i] for i in order],
        precision=torch.float32,
    )
    truth = coco_evaluation(coco_ground_truth(index), rows).metrics["AP"]
    assert truth > 0
    assert look(trial).teacher_ap == truth


def test_a_teacher_that_misses_its_stated_ap_fails(
    make: Make, look: Any, eager: Detector, tmp_path: Path
) -> None:
    trial = make({"teacher": {**saved(eager, tmp_path / "eager.pt"), "stated_ap": 0.389}})
    assert failed(look(trial), trial)["teacher's AP"].startswith(
        "trial.teacher.stated_ap: must be met within 0.010, got 0.389 and AP 0.0"
    )


def test_only_the_first_images_of_a_large_set_are_used_and_measured_once(
    make: Make, look: Any, monkeypatch: pytest.MonkeyPatch, eager: Detector, tmp_path: Path
) -> None:
    monkeypatch.setattr(preflight, "MAX_VAL_IMAGES", 2)
    trial = make({"teacher": saved(eager, tmp_path / "eager.pt"), "data.num_val": 7})
    assert (look(trial).num_measured, look(trial).num_val) == (2, 7)
    monkeypatch.setattr(preflight, "MAX_VAL_IMAGES", 4)
    assert look(trial).num_measured == 2


def test_a_nan_loss_fails(make: Make, look: Any, tmp_path: Path) -> None:
    student = build_detector(EAGER, CLASSES, seed=0)
    with torch.no_grad():
        student.model.get_parameter("head.classification_head.cls_logits.bias").fill_(torch.nan)
    trial = make({"student": saved(student, tmp_path / "student.pt")})
    assert "classification nan" in failed(look(trial), trial)["losses"]


def test_a_teacher_that_is_not_frozen_fails(
    make: Make, look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = SharedParts._open_teacher
    monkeypatch.setattr(
        SharedParts, "_open_teacher", lambda *given: opened(*given).train().requires_grad_(True)
    )
    trial = make()
    text = failed(look(trial), trial)["teacher frozen"]
    assert "training mode" in text
    assert "a gradient of model." in text
    assert "running_mean" in text


def test_a_method_without_weight_reaches_no_level(make: Make, look: Any) -> None:
    assert look(make({"distill.kdr.weight": 0})).unreached == ("P3", "P4", "P5", "P6", "P7")


def test_plain_training_is_checked_without_a_teacher(make: Make, look: Any) -> None:
    measured = look(make({"distill": {}, "teacher": None}))
    assert (measured.levels, measured.teacher_ap) == ((), None)
    assert set(measured.gradient_norms) == {"detection", "total"}


def test_foreground_is_red_in_the_pictures_where_the_masks_are_not_0(tmp_path: Path) -> None:
    H, W = 64, 96
    boxes = (torch.tensor([[8.0, 8.0, 30.0, 40.0], [60.0, 4.0, 90.0, 20.0]]), torch.zeros(0, 4))
    batch = Batch(
        images=torch.full((2, 3, H, W), 100, dtype=torch.uint8),
        image_sizes=((64, 96), (48, 64)),
        original_sizes=((64, 96), (48, 64)),
        image_ids=(7, 9),
        boxes=boxes,
        labels=(torch.zeros(2, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)),
    )
    grid = (8, 12)
    paths = write_masks(LocalPath(tmp_path), batch, {"P3": grid}, values="area")
    assert [path.name for path in paths] == ["masks-7.png", "masks-9.png"]
    valid = valid_cells(batch.image_sizes, (H, W), grid, device="cpu")
    masks = foreground_mask(padded_boxes(boxes), valid, (H, W))
    for path, mask, inside in zip(paths, masks, valid, strict=True):
        pixels = np.asarray(Image.open(tmp_path / path.name)).astype(int)
        panel = pixels[:, pixels.shape[1] // 2 :]
        assert panel.shape[1] == MASK_PX
        centres = [
            [(2 * cell + 1) * side // (2 * cells) for cell in range(cells)]
            for cells, side in zip(grid, panel.shape, strict=False)
        ]
        cells = panel[np.ix_(*centres)]
        red = cells[..., 0] - cells[..., 1] > 20
        assert np.array_equal(red, mask.numpy() > 0)
        assert np.array_equal(cells.sum(-1) > 150, inside.numpy())  # 3 x 100, padding at 0.3 of it


def test_it_raises_the_errors_that_training_would_raise(
    make: Make, look: Any, storage: Storage
) -> None:
    trial = make()
    with pytest.raises(Exception, match="its training left no weights"):
        look(dataclasses.replace(trial, teacher_id="0" * 20))


def test_under_auto_it_halves_its_images_until_they_fit(
    make: Make, look: Any, room_for_two: None
) -> None:
    trial = make(OFF | {"training.micro_batch": "auto"})
    measured = look(trial)
    assert measured.num_fit == 2
    [memory] = [
        finding for finding in findings_of(measured, trial.config) if finding.name == "memory"
    ]
    assert (memory.state, memory.text) == ("warning", "fits with 2 images at a time")
    assert failed(measured, trial) == {}


def test_it_uses_at_most_the_images_of_a_pass_and_fails_if_they_do_not_fit(
    make: Make, look: Any, room_for_two: None
) -> None:
    assert look(make(OFF | {"training.micro_batch": 2})).num_fit is None
    for micro_batch in (None, 3):
        with pytest.raises(
            OutOfMemory, match=r"images at a time; training\.micro_batch lowers that"
        ):
            look(make(OFF | {"training.micro_batch": micro_batch}))
