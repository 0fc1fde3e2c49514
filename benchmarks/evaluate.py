"""Measures the time to compute AP of 5,000 images: kdr against pycocotools.

    python benchmarks/evaluate.py                  # 5,000 images, 80 classes, 100 detections each
    python benchmarks/evaluate.py --images 500

Ground truth and detections are drawn from a seed: seven boxes per image, small, medium and large, a
few of them crowds; about two slightly shifted detections of each box, and others anywhere. Both
sides start from the same annotations and the same array of detections, and compute the twelve
metrics of the COCO evaluation, which are compared. kdr also computes AP by class. pycocotools runs
once, kdr before and after it.
"""

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kdr.training.evaluation import coco_evaluation
from kdr.training.metrics import COCO_METRICS

WIDTH, HEIGHT = 640, 480
Rows = np.ndarray[Any, Any]
"""A float array, one row per box, detection or metric."""


def drawn_boxes(rng: np.random.Generator, count: int) -> Rows:
    """Draws (count, 4) boxes xywh of 8 to 320 px inside the image, small ones more often."""
    sides = np.exp(rng.uniform(np.log(8), np.log(320), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * ([WIDTH, HEIGHT] - sides)
    return np.concatenate([corners, sides], axis=1)


def drawn_truth(rng: np.random.Generator, num_images: int, num_classes: int) -> dict[str, Any]:
    """Draws annotations in COCO format."""
    annotations: list[dict[str, Any]] = []
    for image_id in range(1, num_images + 1):
        boxes = drawn_boxes(rng, int(rng.poisson(7)))
        labels = rng.integers(1, num_classes + 1, len(boxes))
        crowds = rng.random(len(boxes)) < 0.01
        for box, label, crowd in zip(boxes.tolist(), labels.tolist(), crowds.tolist(), strict=True):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": label,
                "bbox": box,
            }
            annotations.append(
                annotation
                | {
                    "area": 0.7 * box[2] * box[3],  # of a mask, which is smaller than its box
                    "iscrowd": int(crowd),
                    "ignore": int(crowd),
                }
            )
    return {
        "info": {},
        "images": [{"id": i, "width": WIDTH, "height": HEIGHT} for i in range(1, num_images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, num_classes + 1)],
    }


def drawn_detections(rng: np.random.Generator, truth: dict[str, Any], per_image: int) -> Rows:
    """Draws (D, 7) rows of image id, box xywh, score and category id, on average `per_image`."""
    num_images, num_classes = len(truth["images"]), len(truth["categories"])
    of_truth = [[a["image_id"], *a["bbox"], a["category_id"]] for a in truth["annotations"]]
    # 0 to 4 detections of each box, on average 2
    near = np.repeat(np.array(of_truth), rng.integers(0, 5, len(of_truth)), axis=0)
    near[:, 1:5] += rng.normal(0, 0.1, (len(near), 4)) * np.tile(near[:, 3:5], 2)
    near[:, 3:5] = near[:, 3:5].clip(1)
    far = np.empty((num_images * per_image - len(near), 6))
    far[:, 0] = rng.integers(1, num_images + 1, len(far))
    far[:, 1:5] = drawn_boxes(rng, len(far))
    far[:, 5] = rng.integers(1, num_classes + 1, len(far))
    scores = np.concatenate([rng.beta(4, 2, len(near)), rng.beta(1, 4, len(far))])
    found = np.concatenate([near, far])
    return rng.permutation(np.column_stack([found[:, :5], scores, found[:, 5]]))


def by_pycocotools(truth: dict[str, Any], detections: Rows) -> Rows:
    """Returns the twelve metrics, computed as in pycocotools' documentation."""
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ours = COCO()
        ours.dataset = truth
        ours.createIndex()
        scorer = COCOeval(ours, ours.loadRes(detections), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return np.asarray(scorer.stats)


def by_kdr(truth: dict[str, Any], detections: Rows) -> Rows:
    """Returns the twelve metrics, computed as in a trial; -1 for a metric without any box."""
    metrics = coco_evaluation(truth, detections).metrics
    return np.array([metrics.get(name, -1.0) for name in COCO_METRICS])


def timed(evaluate: Callable[..., Rows], *arguments: Any) -> tuple[Rows, float]:
    """Returns the metrics of an evaluation, and its seconds."""
    start = time.perf_counter()
    found = evaluate(*arguments)
    return found, time.perf_counter() - start


def main() -> None:
    """Prints the seconds of both sides, their ratio, and the largest difference of a metric."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, help="number of images")
    parser.add_argument("--classes", type=int, default=80, help="number of classes")
    parser.add_argument(
        "--detections", type=int, default=100, help="detections per image, on average"
    )
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = drawn_truth(rng, arguments.images, arguments.classes)
    detections = drawn_detections(rng, truth, arguments.detections)
    ours, before = timed(by_kdr, truth, detections)
    theirs, reference = timed(by_pycocotools, truth, detections)
    _, after = timed(by_kdr, truth, detections)
    print(
        f"{arguments.images:,} images, {len(truth['annotations']):,} boxes, {len(detections):,} "
        "detections"
    )
    print(", ".join(f"{name} {value:.4f}" for name, value in zip(COCO_METRICS, ours, strict=True)))
    ratio = reference / statistics.mean((before, after))
    difference = float(np.abs(ours - theirs).max())
    print(
        f"kdr {before:.1f} s and {after:.1f} s, pycocotools {reference:.1f} s: {ratio:.1f} times "
        f"as fast (target: 5); largest difference of the twelve metrics: {difference:g}"
    )


if __name__ == "__main__":
    main()
