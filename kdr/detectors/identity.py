"""What weights are, told without torch: the names that torchvision offers, and the identity of a
file. Part of a trial's key.
"""

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
"""torchvision's weights of whole detectors that kdr can build."""

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
"""torchvision's weights of the classifiers whose bodies are kdr's backbones."""

_ENUM_LIKE = re.compile(r"\w+_Weights\.\w+")


def content_id(source: str) -> str:
    """Returns the identity of weights: a torchvision enum's name as it is, `file-<blake2b>` of a
    file's content.

    Args:
        source: a name out of `DETECTOR_ENUMS` or `BACKBONE_ENUMS`, or the path of a file.

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
            f"{source}: must be a file that can be read, got {error.strerror}. Change its "
            "permissions"
        ) from error


def is_enum(source: str) -> bool:
    """Whether a source of weights is the name of a torchvision enum that kdr can use."""
    return source in DETECTOR_ENUMS or source in BACKBONE_ENUMS


def weights_file(source: str) -> Path:
    """Returns the path of a weights file, `~` expanded.

    Raises:
        WeightsError: if there is no such file; a text that looks like an enum's name is answered
            with the nearest names.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise WeightsError(f"{source}: must be a weights file, got a folder. Name the file in it")
    if _ENUM_LIKE.fullmatch(source):
        # DEFAULT changes its meaning with torchvision's version, so it cannot name a trial
        close = difflib.get_close_matches(
            source.replace(".DEFAULT", "."), DETECTOR_ENUMS + BACKBONE_ENUMS, n=2, cutoff=0.5
        )
        names = close or DETECTOR_ENUMS + BACKBONE_ENUMS
        raise WeightsError(
            f"{source}: no such weights, neither a file nor a name of torchvision's. Nearest: "
            f"{', '.join(names)}"
        )
    raise WeightsError(
        f"{source}: must be a weights file or the name of a torchvision enum, got nothing there. "
        "Check the path"
    )
