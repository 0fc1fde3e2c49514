"""COCO metrics: pycocotools is the oracle."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdr.training.evaluation import coco_evaluation
from kdr.training.findings import SAMPLING_ERROR
from kdr.training.metrics import COCO_METRICS


def oracle(truth: dict[str, Any], detections: np.ndarray[Any, Any]) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        found = coco.loadRes(detections) if len(detections) else COCO()
        if not len(detections):
            found.dataset = {
                "images": truth["images"],
                "categories": truth["categories"],
                "annotations": [],
            }
            found.createIndex()
        scorer = COCOeval(coco, found, "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return {
        name: float(value)
        for name, value in zip(COCO_METRICS, scorer.stats, strict=True)
        if value >= 0
    }


def annotation(
    number: int, image: int, category: int, box: list[float], **more: Any
) -> dict[str, Any]:
    given = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
    }
    return given | more


def ground_truth(annotations: list[dict[str, Any]], *, num_images: int = 3) -> dict[str, Any]:
    return {
        "images": [
            {"id": 10 * index + 7, "width": 640, "height": 480} for index in range(num_images)
        ],
        "categories": [
            {"id": 3, "name": "cat"},
            {"id": 90, "name": "dog"},
            {"id": 91, "name": "never seen"},
        ],
        "annotations": annotations,
    }


def drawn_case(seed: int) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Boxes of all sizes, crowds, duplicates and near misses, with equal scores among them."""
    draw = np.random.default_rng(seed)
    annotations, detections = [], []
    for number in range(60):
        image, category = int(draw.choice([7, 17, 27])), int(draw.choice([3, 90]))
        side = float(draw.choice([8, 20, 60, 150]))
        box = [
            float(value)
            for value in (
                draw.uniform(0, 400),
                draw.uniform(0, 300),
                side,
                side * draw.uniform(0.5, 2),
            )
        ]
        annotations.append(
            annotation(number + 1, image, category, box, iscrowd=int(draw.random() < 0.1))
        )
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
        ground_truth(
            [annotation(1, 7, 3, [10, 10, 20, 20]), annotation(2, 17, 90, [0, 0, 300, 300])]
        ),
        np.array([[7, 10, 10, 20, 20, 1.0, 3], [17, 0, 0, 300, 300, 1.0, 90]]),
    ),
}


@pytest.mark.parametrize(
    "case", [*AWKWARD.values(), *(drawn_case(seed) for seed in range(4))], ids=[*AWKWARD, *"0123"]
)
def test_all_twelve_numbers_agree_with_pycocotools(
    case: tuple[dict[str, Any], np.ndarray[Any, Any]],
) -> None:
    truth, detections = case
    expected = oracle(truth, detections)
    found = coco_evaluation(truth, detections).metrics
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_ap_is_the_mean_over_categories_with_ground_truth() -> None:
    truth, detections = drawn_case(5)
    found = coco_evaluation(truth, detections)
    assert set(found.ap_per_class) == {"cat", "dog"}
    assert found.metrics["AP"] == pytest.approx(np.mean(list(found.ap_per_class.values())))


def test_the_ground_truth_is_not_modified() -> None:
    truth, detections = drawn_case(6)
    before = repr(truth)
    coco_evaluation(truth, detections)
    assert repr(truth) == before


@pytest.mark.slow
@pytest.mark.parametrize("num_images", [25, 100, 400])
def test_ap_of_some_images_is_within_the_sampling_error_of_ap_of_all(num_images: int) -> None:
    truth, detections = simulated(num_images=2500, num_classes=80)
    whole = coco_evaluation(truth, detections).metrics["AP"]
    assert 0.3 < whole < 0.5
    draw = np.random.default_rng(1)
    subsets = [set(draw.choice(2500, num_images, replace=False).tolist()) for _ in range(8)]
    found = [ap_of(truth, detections, images) for images in subsets]
    assert max(abs(ap - whole) for ap in found) < SAMPLING_ERROR / num_images**0.5
    assert np.mean(found) > whole  # classes with few boxes are found in full or not at all


def ap_of(truth: dict[str, Any], detections: np.ndarray[Any, Any], images: set[int]) -> float:
    """AP over some of the images."""
    some = {
        name: [row for row in truth[name] if row[of] in images]
        for name, of in (("images", "id"), ("annotations", "image_id"))
    }
    return coco_evaluation(
        {**truth, **some}, detections[np.isin(detections[:, 0], list(images))]
    ).metrics["AP"]


def simulated(num_images: int, num_classes: int) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Boxes of classes as uneven as COCO's, most of them detected, with false positives.

    Better detections have higher scores.
    """
    draw = np.random.default_rng(0)
    share = 1 / np.arange(1, num_classes + 1) ** 1.1
    num_boxes = 7 * num_images
    image = draw.integers(num_images, size=num_boxes)
    category = draw.choice(num_classes, num_boxes, p=share / share.sum()) + 1
    side = np.exp(draw.normal(4.2, 0.9, num_boxes))
    boxes = np.column_stack(
        [draw.uniform(0, 500, num_boxes), draw.uniform(0, 400, num_boxes), side, side]
    )
    quality = draw.beta(2, 1.2, num_boxes)
    noise = draw.normal(0, 0.12, (num_boxes, 4)) * (1.1 - quality)[:, None]
    near = np.column_stack(
        [boxes[:, :2] + noise[:, :2] * side[:, None], boxes[:, 2:] * np.exp(noise[:, 2:])]
    )
    hits = np.column_stack([image, near, quality, category])[draw.random(num_boxes) < 0.75]
    false = np.column_stack(
        [
            image,
            draw.permuted(boxes, axis=0),
            draw.beta(1.4, 2.2, num_boxes),
            draw.permutation(category),
        ]
    )
    truth = {
        "info": {},
        "images": [{"id": number, "width": 640, "height": 480} for number in range(num_images)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, num_classes + 1)],
        "annotations": [
            annotation(
                number + 1, int(image[number]), int(category[number]), boxes[number].tolist()
            )
            for number in range(num_boxes)
        ],
    }
    return truth, np.concatenate([hits, false])
