"""Builds detectors from settings, with initial weights. Each kind is one line in `KINDS`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kdr.config.detector import DetectorConfig
from kdr.detectors.categories import categories_of
from kdr.detectors.detector import Detector, Kind
from kdr.detectors.faster_rcnn import FASTER_RCNN
from kdr.detectors.fcos import FCOS
from kdr.detectors.retinanet import RETINANET
from kdr.randomness import address

KINDS: dict[str, Kind] = {"retinanet": RETINANET, "fcos": FCOS, "faster_rcnn": FASTER_RCNN}


def build_detector(
    config: DetectorConfig, categories: Sequence[str], *, seed: int, new_classes: bool = False
) -> Detector:
    """Builds a detector with initial weights; `kdr.detectors.weights` loads trained ones.

    The weights are those of torchvision's model after `torch.manual_seed(address(seed,
    "detector"))`. The state of the global generators does not change.

    Args:
        config: the detector's settings.
        categories: names of the data's classes 0..K-1.
        seed: the trial's seed.
        new_classes: use `categories` even if `config.weights` have class names of their own, as for
            a student that is fine-tuned on other classes; its class layer then keeps its initial
            weights. Otherwise the names of the weights are used.
    """
    if config.weights is not None and not new_classes:
        categories = categories_of(config.weights, config.weights_layout) or categories
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the GPUs, which fork_rng(devices=[]) does not restore
        torch.default_generator.manual_seed(address(seed, "detector"))
        model = torchvision_model(config, len(categories))
    if config.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.norm_momentum
    return Detector(config, model, categories, KINDS[config.detector])


def torchvision_model(config: DetectorConfig, num_classes: int, **options: Any) -> nn.Module:
    """Builds a plain torchvision model with random weights; an exported state_dict loads strictly.

    Args:
        config: the detector's settings; `weights` selects the architecture and is not loaded.
        num_classes: K.
        options: arguments of torchvision's class, such as `min_size`, `score_thresh` or
            `detections_per_img`.

    Returns:
        `torchvision.models.detection.RetinaNet`, `FCOS` or `FasterRCNN`; the last has K + 1
        classes, the first of them the background.
    """
    return KINDS[config.detector].build(
        config, num_classes, **{**_pixel_statistics(config), **options}
    )


def _pixel_statistics(config: DetectorConfig) -> dict[str, list[float]]:
    """Returns mean and std of the pixels if they are set, in torchvision's units: RGB, 0 to 1."""
    statistics = {"image_mean": config.pixel_mean, "image_std": config.pixel_std}
    order = -1 if config.channel_order == "BGR" else 1
    return {
        name: [value / 255 for value in values[::order]]
        for name, values in statistics.items()
        if values is not None
    }
