"""From settings to a detector with its initial weights. A new kind of detector is one line in the
table here.
"""

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
    """Builds a detector with its initial weights; nothing is loaded or downloaded
    (`kdr.detectors.weights` does).

    The draws are those that torchvision's model makes after `torch.manual_seed(address(seed,
    "detector"))`; the global generators are left as they were.

    Args:
        config: the detector's settings.
        categories: names of the classes that the data labels 0..K-1.
        seed: the trial's seed.
        new_classes: keep `categories` where `config.weights` come with names of their own, as a
            student that is tuned on other classes must; its class layer then keeps its initial
            weights. Otherwise the names of the weights count.
    """
    if config.weights is not None and not new_classes:
        categories = categories_of(config.weights, config.weights_layout) or categories
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed the GPUs as well, which the fork does not give back
        torch.default_generator.manual_seed(address(seed, "detector"))
        model = torchvision_model(config, len(categories))
    if config.norm_momentum is not None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = config.norm_momentum
    return Detector(config, model, categories, KINDS[config.detector])


def torchvision_model(config: DetectorConfig, num_classes: int, **options: Any) -> nn.Module:
    """Builds the plain torchvision model, randomly initialised, into which an exported state_dict
    loads strictly.

    Args:
        config: the detector's settings; its weights are not loaded, only the architecture that
            belongs to them is built.
        num_classes: K.
        options: arguments of torchvision's class, such as `min_size`, `score_thresh` or
            `detections_per_img`.

    Returns:
        `torchvision.models.detection.RetinaNet`, `FCOS` or `FasterRCNN`; this one has K + 1
        classes, the first the background.
    """
    return KINDS[config.detector].build(
        config, num_classes, **{**_pixel_statistics(config), **options}
    )


def _pixel_statistics(config: DetectorConfig) -> dict[str, list[float]]:
    """Mean and std of the pixels where they are not torchvision's, in its units: RGB, 0 to 1."""
    set_ = {"image_mean": config.pixel_mean, "image_std": config.pixel_std}
    order = -1 if config.channel_order == "BGR" else 1
    return {
        name: [value / 255 for value in values[::order]]
        for name, values in set_.items()
        if values is not None
    }
