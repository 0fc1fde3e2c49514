"""A loaded student has the detections of its evaluation."""

from pathlib import Path

import pytest
import torch

from kdr.config.data import Resize, ShapesData
from kdr.config.detector import DetectorConfig
from kdr.data.loader import EvaluationBatches
from kdr.data.splits import open_splits
from kdr.detectors.build import build_detector
from kdr.detectors.checkpoint_files import save_student
from kdr.detectors.detector import Detector
from kdr.errors import ShapeMismatchError, WeightsError
from kdr.storage.layout import Storage
from kdr.storage.local_path import LocalPath
from kdr.training.student import Student, load_student

SMALL = DetectorConfig(backbone="mobilenet_v3_small", fpn_channels=32, anchor_scale=2)


@pytest.fixture(scope="module")
def eager() -> Detector:
    """An untrained detector that detects something everywhere."""
    detector = build_detector(SMALL, ("circle", "square", "star"), seed=0)
    with torch.no_grad():
        detector.model.get_parameter("head.classification_head.cls_logits.bias").add_(4)
    return detector


@pytest.mark.parametrize(
    "resize", [None, Resize(square_px=96), Resize(short_side_px=(64, 80), long_side_px=100)]
)
def test_its_detections_are_those_of_its_trials_evaluation(
    eager: Detector, storage: Storage, resize: Resize | None
) -> None:
    data = ShapesData(dataset="shapes", image_size_px=64, num_train=4, num_val=3, resize=resize)
    index = open_splits(data, storage).evaluation
    original = open_splits(data.with_changes(resize=None), storage).evaluation
    student = Student(eager, resize)
    images = EvaluationBatches(original, data.with_changes(resize=None), batch_size=1)
    for batch, plain in zip(EvaluationBatches(index, data, batch_size=1), images, strict=True):
        pixels = eager.pixels(batch.images, batch.image_sizes)
        [expected] = eager.detections(eager.features(pixels), pixels, batch.image_sizes)
        height, width = plain.image_sizes[0]
        [found] = student.predict([plain.images[0, :, :height, :width]], min_score=0.0)
        assert len(found.scores) > 0
        scale = torch.tensor([width / batch.image_sizes[0][1], height / batch.image_sizes[0][0]])
        torch.testing.assert_close(found.scores, expected["scores"].sort(descending=True).values)
        order = expected["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(found.boxes_xyxy, expected["boxes"][order] * scale.repeat(2))


def test_the_file_keeps_classes_and_resizing(eager: Detector, tmp_path: Path) -> None:
    resize = Resize(short_side_px=(64, 80))
    extra = {"trial": "k", "resize": resize.model_dump(mode="json")}
    save_student(LocalPath(tmp_path) / "student.pt", eager, extra=extra)
    image = torch.randint(0, 255, (3, 50, 70), dtype=torch.uint8)
    for path in (tmp_path, tmp_path / "student.pt", str(tmp_path / "student.pt")):
        student = load_student(path)
        assert student.categories == ("circle", "square", "star")
        [found] = student.predict([image], min_score=0.0)
        [expected] = Student(eager, resize).predict([image], min_score=0.0)
        torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)
        assert found.names == expected.names


def test_a_student_without_stored_resizing_keeps_the_size_of_images(
    eager: Detector, tmp_path: Path
) -> None:
    save_student(LocalPath(tmp_path) / "student.pt", eager, extra={"trial": "k"})
    image = torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)
    [found] = load_student(tmp_path).predict([image], min_score=0.0)
    [expected] = Student(eager, None).predict([image], min_score=0.0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy)


def test_images_of_several_sizes_are_predicted_in_one_call(eager: Detector) -> None:
    images = [torch.zeros(3, 40, 64, dtype=torch.uint8), torch.zeros(3, 64, 48, dtype=torch.uint8)]
    found = Student(eager, Resize(square_px=64)).predict(images, min_score=0.0)
    for one, image in zip(found, images, strict=True):
        height, width = image.shape[-2:]
        assert one.boxes_xyxy[:, 2].max() <= width + 1e-3
        assert one.boxes_xyxy[:, 3].max() <= height + 1e-3
        assert one.scores.tolist() == sorted(one.scores.tolist(), reverse=True)
    assert Student(eager, None).predict([]) == []


@pytest.mark.parametrize(
    "image",
    [torch.zeros(3, 8, 8), torch.zeros(8, 8, dtype=torch.uint8), torch.zeros(1, 4, 4).byte()],
)
def test_an_image_of_another_type_or_shape_is_an_error(
    eager: Detector, image: torch.Tensor
) -> None:
    with pytest.raises(ShapeMismatchError, match=r"^images\[0\]: must be uint8 \(3, H, W\), got"):
        Student(eager, None).predict([image])


def test_a_missing_file_is_a_weights_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"student\.pt"):
        load_student(tmp_path)
