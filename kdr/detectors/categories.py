"""Finds the class names of weights: in the sidecar, in torchvision, or in the file itself."""

from kdr.config.layout import WeightsLayout
from kdr.detectors import mmdetection_meta
from kdr.detectors.sidecar import weights_categories
from kdr.detectors.state_file import StateFile, read_state_file


def categories_of(
    source: str, layout: WeightsLayout | None, file: StateFile | None = None
) -> tuple[str, ...] | None:
    """Returns the class names that come with a detector's weights; None if unknown.

    detectron2's files never contain names.

    Args:
        source: a value of the setting `weights`.
        layout: the library that saved the weights.
        file: content of the weights file, if already read.

    Raises:
        WeightsError: if an mmdetection file is needed and cannot be read.
    """
    if layout is None:
        return weights_categories(source)
    if layout == "detectron2":
        return None
    return mmdetection_meta.categories((file or read_state_file(source)).meta)
