"""Which classes weights know, by name: from the sidecar, torchvision, or the file itself."""

from kdr.config.layout import WeightsLayout
from kdr.detectors import mmdetection_meta
from kdr.detectors.sidecar import weights_categories
from kdr.detectors.state_file import StateFile, read_state_file


def categories_of(
    source: str, layout: WeightsLayout | None, file: StateFile | None = None
) -> tuple[str, ...] | None:
    """Returns the class names that come with a detector's weights; None where nothing tells them,
    as with detectron2's files.

    Args:
        source: as in the setting `weights`.
        layout: the library that saved them.
        file: what was read of them, if it was.

    Raises:
        WeightsError: if a file of mmdetection has to be read and cannot be.
    """
    if layout is None:
        return weights_categories(source)
    if layout == "detectron2":
        return None
    return mmdetection_meta.categories((file or read_state_file(source)).meta)
