"""COCO box metrics of a detector, by faster-coco-eval.

A test compares its results with pycocotools: they agree to the last digit.
"""

import contextlib
import gc
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdr.data.coco import CocoIndex, coco_ground_truth
from kdr.data.loader import Batch
from kdr.detectors.detector import Detector
from kdr.training.metrics import COCO_METRICS, Evaluation
from kdr.training.ranks import ALONE, Ranks

logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)


def evaluate(
    detector: Detector,
    batches: Iterable[Batch],
    index: CocoIndex,
    *,
    precision: torch.dtype,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluates a detector on a set of images; its training mode is restored afterwards.

    Args:
        detector: the detector, on the device to use.
        batches: the images of `index`, resized for evaluation; with several ranks, this rank's
            share.
        index: the images with their ground truth, crowd boxes included.
        precision: dtype of autocast; float32 turns it off.
        ranks: the processes that evaluate together; all of them get the result.
    """
    rows = detection_rows(detector, batches, index.category_ids, precision=precision)
    # scored once, by rank 0: AP over all images is not a mean of the ranks' APs
    found_by_all = np.concatenate([rows[:0], *ranks.gathered(rows)])
    return ranks.from_first(lambda: coco_evaluation(coco_ground_truth(index), found_by_all))


@torch.no_grad()
def detection_rows(
    detector: Detector,
    batches: Iterable[Batch],
    category_ids: Sequence[int | None],
    *,
    precision: torch.dtype,
) -> np.ndarray[Any, Any]:
    """Returns a detector's detections in images; its training mode is restored afterwards.

    Args:
        detector: the detector, on the device to use.
        batches: images, resized for evaluation.
        category_ids: id in the annotation file of each of the detector's classes; None for a class
            that does not count.
        precision: dtype of autocast; float32 turns it off.

    Returns:
        (D, 7) rows as `coco_evaluation` expects them.
    """
    device = next(detector.parameters()).device
    was_training = detector.training
    detector.eval()
    rows = [np.zeros((0, 7))]  # without any detection there must be an array to concatenate
    try:
        for batch in batches:
            on_device = batch.to(device)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                pixels = detector.pixels(on_device.images, batch.image_sizes)
                found = detector.detections(detector.features(pixels), pixels, batch.image_sizes)
            rows += _rows_of_batch(
                found, batch, np.array([np.nan if i is None else i for i in category_ids])
            )
    finally:
        detector.train(was_training)
    return np.concatenate(rows)


def coco_evaluation(ground_truth: dict[str, Any], detections: np.ndarray[Any, Any]) -> Evaluation:
    """Returns the COCO box metrics of detections.

    Args:
        ground_truth: images, annotations and categories in COCO format.
        detections: (D, 7) rows of image id, x, y, width, height in pixels of the original image,
            score, category id.
    """
    # imported here: 0.2 s that a process without an evaluation need not spend
    from faster_coco_eval import COCO, COCOeval_faster

    with _no_garbage_collection():
        truth = COCO(ground_truth, use_deepcopy=True)
        # an array: a list of dicts would be copied entry by entry
        found = truth.loadRes(detections)
        scorer = COCOeval_faster(truth, found, iouType="bbox", print_function=lambda *_: None)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    # COCO reports -1 for a metric without ground truth, such as APl without large boxes
    metrics = {
        name: float(value)
        for name, value in zip(COCO_METRICS, scorer.stats, strict=True)
        if value >= 0
    }
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    return Evaluation(metrics, _ap_per_class(scorer, names))


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turns garbage collection off while half a million detections become as many small dicts.

    The collector would walk through all of them again and again, and find nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _rows_of_batch(
    found: Sequence[dict[str, Tensor]], batch: Batch, category_ids: np.ndarray[Any, Any]
) -> Iterator[np.ndarray[Any, Any]]:
    for index, image in enumerate(found):
        # back to pixels of the original image, as in the ground truth
        (height, width), (original_height, original_width) = (
            batch.image_sizes[index],
            batch.original_sizes[index],
        )
        boxes = image["boxes"].double().cpu().numpy() * (
            [original_width / width, original_height / height] * 2
        )
        boxes[:, 2:] -= boxes[:, :2]  # COCO has width and height, not a second corner
        scores, labels = image["scores"].double().cpu().numpy(), image["labels"].cpu().numpy()
        rows = np.column_stack(
            [np.full(len(boxes), batch.image_ids[index]), boxes, scores, category_ids[labels]]
        )
        yield rows[~np.isnan(rows[:, 6])]


def _ap_per_class(scorer: Any, names: dict[int, str]) -> dict[str, float]:
    # [IoU thresholds, recalls, K] for all areas and the most detections; -1 without ground truth
    precision = scorer.eval["precision"][:, :, :, 0, -1]
    means = {}
    for index, category_id in enumerate(scorer.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            means[names[int(category_id)]] = float(values[values > -1].mean())
    return means
