"""Identity of weights in a trial's key: torchvision's name or a file's hash. Needs no torch."""

import difflib
import hashlib
import re
from pathlib import Path

from kdr.errors import WeightsError

DETECTOR_ENUMS = (
    "RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    "RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1",
    "FCOS_ResNet50_FPN_Weights.COCO_V1",
    "FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
)
"""torchvision's detector weights that kdr can load. Listed here, because asking torchvision would
import torch, which takes seconds."""

BACKBONE_ENUMS = (
    "ResNet18_Weights.IMAGENET1K_V1",
    "ResNet34_Weights.IMAGENET1K_V1",
    "ResNet50_Weights.IMAGENET1K_V1",
    "ResNet50_Weights.IMAGENET1K_V2",
    "ResNet101_Weights.IMAGENET1K_V1",
    "ResNet101_Weights.IMAGENET1K_V2",
    "ResNet152_Weights.IMAGENET1K_V1",
    "ResNet152_Weights.IMAGENET1K_V2",
    "ResNeXt50_32X4D_Weights.IMAGENET1K_V1",
    "ResNeXt50_32X4D_Weights.IMAGENET1K_V2",
    "ResNeXt101_32X8D_Weights.IMAGENET1K_V1",
    "ResNeXt101_32X8D_Weights.IMAGENET1K_V2",
    "ResNeXt101_64X4D_Weights.IMAGENET1K_V1",
    "Wide_ResNet50_2_Weights.IMAGENET1K_V1",
    "Wide_ResNet50_2_Weights.IMAGENET1K_V2",
    "Wide_ResNet101_2_Weights.IMAGENET1K_V1",
    "Wide_ResNet101_2_Weights.IMAGENET1K_V2",
    "MobileNet_V3_Small_Weights.IMAGENET1K_V1",
    "MobileNet_V3_Large_Weights.IMAGENET1K_V1",
    "MobileNet_V3_Large_Weights.IMAGENET1K_V2",
)
"""torchvision's weights of classifiers whose bodies are kdr's backbones."""

_ENUM_LIKE = re.compile(r"\w+_Weights\.\w+")


def content_id(source: str) -> str:
    """Returns the identity of weights: a torchvision enum's name, or `file-<blake2b of content>`.

    Args:
        source: a name from `DETECTOR_ENUMS` or `BACKBONE_ENUMS`, or the path of a file.

    Raises:
        WeightsError: for an unknown enum name, or a file that cannot be read.
    """
    if is_enum(source):
        return source
    path = weights_file(source)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            return f"file-{digest.hexdigest()}"
    except OSError as error:
        raise WeightsError(
            f"{source}: cannot read the weights file ({error.strerror}). Check its permissions"
        ) from error


def is_enum(source: str) -> bool:
    """Returns whether a source of weights is the name of a torchvision enum that kdr supports."""
    return source in DETECTOR_ENUMS or source in BACKBONE_ENUMS


def weights_file(source: str) -> Path:
    """Returns the path of a weights file, with `~` expanded.

    Raises:
        WeightsError: if there is no such file. If the text looks like an enum, the message has the
            closest names.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise WeightsError(f"{source}: is not a weights file but a folder. Give the file in it")
    if _ENUM_LIKE.fullmatch(source):
        # DEFAULT means different weights in different versions of torchvision, so it cannot be part
        # of a trial's key
        close = difflib.get_close_matches(
            source.replace(".DEFAULT", "."), DETECTOR_ENUMS + BACKBONE_ENUMS, n=2, cutoff=0.5
        )
        names = close or DETECTOR_ENUMS + BACKBONE_ENUMS
        raise WeightsError(
            f"{source}: neither a file nor torchvision weights that kdr supports. Closest names: "
            f"{', '.join(names)}"
        )
    raise WeightsError(
        f"{source}: no such weights file. Check the path, or use the name of a torchvision enum"
    )
