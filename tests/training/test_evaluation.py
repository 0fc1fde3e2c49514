"""COCO metrics: pycocotools is the oracle."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdr.training.evaluation import coco_evaluation
from kdr.training.metrics import COCO_METRICS


def oracle(truth: dict[str, Any], detections: np.ndarray[Any, Any]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes(detections) if len(detections) else COCO()
        if not len(detections):
            found.dataset = {"images": truth["images"], "categories": truth["categories"], "annotations": []}
            found.createIndex()
        scorer = COCOeval(coco, found, "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return {name: float(value) for name, value in zip(COCO_METRICS, scorer.stats, strict=True) if value >= 0}


def annotation(number: int, image: int, category: int, box: list[float], **more: Any) -> dict[str, Any]:
    given = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    return given | more


def ground_truth(annotations: list[dict[str, Any]], *, num_images: int = 3) -> dict[str, Any]:
    return {
        "images": [{"id": 10 * index + 7, "width": 640, "height": 480} for index in range(num_images)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}, {"id": 91, "name": "never seen"}],
        "annotations": annotations,
    }


def drawn_case(seed: int) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Boxes of all sizes, crowds, duplicates and near misses, with equal scores among them."""
    draw = np.random.default_rng(seed)
    annotations, detections = [], []
    for number in range(60):
        image, category = int(draw.choice([7, 17, 27])), int(draw.choice([3, 90]))
        side = float(draw.choice([8, 20, 60, 150]))
        box = [float(value) for value in (draw.uniform(0, 400), draw.uniform(0, 300), side, side * draw.uniform(0.5, 2))]
        annotations.append(annotation(number + 1, image, category, box, iscrowd=int(draw.random() < 0.1)))
        for _ in range(int(draw.integers(0, 4))):
            shifted = [value + float(draw.normal(0, side / 8)) for value in box[:2]] + box[2:]
            label = category if draw.random() < 0.8 else int(draw.choice([3, 90, 91]))
            detections.append([image, *shifted, round(float(draw.random()), 1), label])
    return ground_truth(annotations), np.array(detections)


AWKWARD = {
    "no detections": (ground_truth([annotation(1, 7, 3, [10, 10, 50, 50])]), np.zeros((0, 7))),
    "no ground truth": (ground_truth([]), np.array([[7, 10, 10, 50, 50, 0.9, 3]])),
    "only a crowd": (
        ground_truth([annotation(1, 7, 3, [0, 0, 200, 200], iscrowd=1)]),
        np.array([[7, 10, 10, 50, 50, 0.9, 3], [7, 300, 300, 50, 50, 0.8, 3]]),
    ),
    "more than 100 detections": (
        ground_truth([annotation(1, 7, 3, [10, 10, 50, 50])]),
        np.array([[7, 10 + index % 7, 10, 50, 50, 0.5 + index / 1000, 3] for index in range(150)]),
    ),
    "perfect": (
        ground_truth([annotation(1, 7, 3, [10, 10, 20, 20]), annotation(2, 17, 90, [0, 0, 300, 300])]),
        np.array([[7, 10, 10, 20, 20, 1.0, 3], [17, 0, 0, 300, 300, 1.0, 90]]),
    ),
}


@pytest.mark.parametrize("case", [*AWKWARD.values(), *(drawn_case(seed) for seed in range(4))], ids=[*AWKWARD, *"0123"])
def test_all_twelve_numbers_agree_with_pycocotools(case: tuple[dict[str, Any], np.ndarray[Any, Any]]) -> None:
    truth, detections = case
    expected = oracle(truth, detections)
    found = coco_evaluation(truth, detections).metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_ap_is_the_mean_over_the_categories_that_occur() -> None:
    truth, detections = drawn_case(5)
    found = coco_evaluation(truth, detections)
    assert set(found.ap_per_class) == {"cat", "dog"}
    assert found.metrics["AP"] == pytest.approx(np.mean(list(found.ap_per_class.values())))


def test_the_ground_truth_is_left_as_it_was() -> None:
    truth, detections = drawn_case(6)
    before = repr(truth)
    coco_evaluation(truth, detections)
    assert repr(truth) == before
