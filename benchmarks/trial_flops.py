"""Counts the floating-point operations of a trial, and estimates its GPU-hours.

    python benchmarks/trial_flops.py search_spaces/coco_retinanet.yaml --set distill={}
    python benchmarks/trial_flops.py search_spaces/coco_teachers.yaml --set student.detector=fcos

Runs one real step of the study's base trial on the CPU, forward and backward, with random weights
on one padded image of `--size` with seven boxes. torch's FlopCounterMode counts matrix products and
convolutions, two operations per multiply-add, and skips gradients of frozen layers. This needs no
data and no weights, about 5 GB of memory and up to a minute.

The GPU-hours are an estimate: they assume that every image is as large as `--size`, and that the
GPU sustains `--tflops`, which depends on the GPU, the precision and the loader. Measure the
`images_per_s` of a run (`kdr train`, or the log) before you rely on them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from kdr.config.study import read_study
from kdr.config.trial import TrialConfig
from kdr.detectors.build import build_detector
from kdr.detectors.detector import Detector
from kdr.distill.method import FeatureLevels, Outputs, Setup
from kdr.distill.methods import Methods, build_methods
from kdr.training.distilled_student import DistilledStudent

CATEGORIES = [f"class {number}" for number in range(80)]
BOXES = torch.tensor(
    [
        [40.0 * n + 10, 20.0 * n + 10, 40.0 * n + 30 * (n + 1), 20.0 * n + 25 * (n + 1)]
        for n in range(7)
    ]
)


def main() -> None:
    """Prints the operations per image and of the whole trial, and GPU-hours."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="study file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        help="override a setting, path=value, as in `kdr plan`",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1344),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the padded image in pixels",
    )
    parser.add_argument(
        "--images",
        type=int,
        default=118_287,
        help="training images per epoch; by default those of COCO's train2017",
    )
    parser.add_argument(
        "--val-images",
        type=int,
        default=5_000,
        help="validation images; by default those of COCO's val2017",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        default=50.0,
        help="sustained rate of the GPU, in 10^12 operations per second",
    )
    options = parser.parse_args()
    config = read_study(options.study, options.set).base
    pixels = torch.randn(1, 3, *options.size)
    counts = counted(config, pixels)
    for name, operations in counts.items():
        print(f"{name:<34}{operations / 1e12:8.3f} TFLOP per image")
    training = config.training
    evaluations = -(-training.epochs // training.eval_every_epochs)
    total = (
        training.epochs * options.images * counts["training step"]
        + evaluations * options.val_images * counts["evaluation"]
    )
    print(
        f"{'whole trial':<34}{total / 1e18:8.3f} EFLOP: {training.epochs} epochs, {evaluations} "
        "evaluations"
    )
    print(
        f"{'at ' + format(options.tflops, 'g') + ' TFLOP/s':<34}"
        f"{total / options.tflops / 3.6e15:8.1f} GPU-hours (an estimate)"
    )


def counted(config: TrialConfig, pixels: Tensor) -> dict[str, float]:
    """Counts operations per image: of an evaluation, of a training step, and of its parts."""
    student = build_detector(config.student, CATEGORIES, seed=0, new_classes=True)
    sizes, boxes, labels = [(pixels.shape[-2], pixels.shape[-1])], [BOXES], [torch.arange(7)]
    plain = DistilledStudent(student, Methods({}, {}))
    detection = _operations(lambda: plain(pixels, sizes, boxes, labels, None, 0).total().backward())
    counts = {"detector, forward and backward": detection, "training step": detection}
    if config.teacher is not None and config.distill.methods():
        teacher = build_detector(config.teacher, CATEGORIES, seed=1).eval().requires_grad_(False)
        needs_logits = "teacher_logits" in config.distill.needs()
        found: list[Outputs] = []
        counts["teacher"] = _operations(
            lambda: found.append(_outputs(teacher, pixels, needs_logits=needs_logits))
        )
        distilled = DistilledStudent(student, _methods(config, student, teacher))
        whole = _operations(
            lambda: distilled(pixels, sizes, boxes, labels, found[0], 0).total().backward()
        )
        counts["methods, forward and backward"] = whole - detection
        counts["training step"] = whole + counts["teacher"]
    student.eval()
    counts["evaluation"] = _operations(
        lambda: student.detections(student.features(pixels), pixels, sizes)
    )
    return counts


def _operations(step: Any) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return float(counter.get_total_flops())


def _outputs(teacher: Detector, pixels: Tensor, *, needs_logits: bool) -> Outputs:
    features = teacher.features(pixels)
    return Outputs(features, teacher.class_logits(features) if needs_logits else None)


def _methods(config: TrialConfig, student: Detector, teacher: Detector) -> Methods:
    levels = [FeatureLevels(detector.strides, detector.channels) for detector in (student, teacher)]
    setup = Setup(
        levels[0], levels[1], seed=0, total_steps=1, teacher_std=(1.0,) * len(teacher.strides)
    )
    return build_methods(config.distill, setup)


if __name__ == "__main__":
    main()
