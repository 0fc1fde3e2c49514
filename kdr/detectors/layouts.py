"""Recognises files of mmdetection and detectron2, renames keys and checks settings."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from kdr.config.detector import DetectorConfig
from kdr.config.layout import IMAGENET_MEAN_RGB, IMAGENET_STD_RGB, has_bottlenecks
from kdr.detectors import detectron2_keys, mmdetection_keys, mmdetection_meta
from kdr.detectors.state_file import StateFile
from kdr.detectors.translation import Rule, renamed
from kdr.errors import WeightsError

_FIRST_CONVOLUTION = "backbone.body.conv1.weight"


@dataclass(frozen=True)
class Layout:
    """The layer names of one library."""

    mark: re.Pattern[str]
    """Pattern of a key that only its files have."""
    rules: Mapping[str, Sequence[Rule]]
    """Kind of detector -> rules from its names to torchvision's."""
    with_torchvision_order: Callable[[str, Tensor], Tensor] = lambda _, value: value
    """(key in the file, value) -> the value in torchvision's order."""


LAYOUTS: dict[str, Layout] = {
    "mmdetection": Layout(re.compile(mmdetection_keys.MARK), mmdetection_keys.RULES),
    "detectron2": Layout(
        re.compile(detectron2_keys.MARK),
        detectron2_keys.RULES,
        detectron2_keys.with_torchvision_order,
    ),
}


def with_torchvision_names(
    file: StateFile, source: str, config: DetectorConfig, target: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns a file's state_dict with torchvision's names and values in torchvision's order.

    Keys that torchvision does not have keep their names. So does the whole head unless its keys are
    exactly those of the target's head: half a head would be worse than none. Without
    `weights_layout` the state_dict is returned unchanged.

    Args:
        file: the content of the file.
        source: name of the file, for errors.
        config: the detector's settings.
        target: the detector's own state_dict.

    Raises:
        WeightsError: if the file's layout is not that of `weights_layout`, or if the file records
            other settings.
    """
    _check_layout(file.state, source, config)
    if config.weights_layout is None:
        return file.state
    _check_recorded(file, source, config)
    layout = LAYOUTS[config.weights_layout]
    names = {key: renamed(key, layout.rules[config.detector]) for key in file.state}
    if not _is_whole_head(names.values(), target):
        names = {key: key if name.startswith("head.") else name for key, name in names.items()}
    state = {
        name: layout.with_torchvision_order(key, file.state[key]) for key, name in names.items()
    }
    if config.channel_order == "BGR" and _FIRST_CONVOLUTION in state:
        # the detector takes RGB, and with flipped input channels the network is the same
        state[_FIRST_CONVOLUTION] = state[_FIRST_CONVOLUTION].flip(1)
    return state


def _check_layout(state: Mapping[str, Tensor], source: str, config: DetectorConfig) -> None:
    found = next(
        (name for name, layout in LAYOUTS.items() if any(map(layout.mark.fullmatch, state))), None
    )
    if found == config.weights_layout:
        return
    if found is None:
        raise WeightsError(
            f"{source}: its layers, such as {next(iter(state))}, do not have "
            f"{config.weights_layout}'s names. Remove weights_layout"
        )
    expected = config.weights_layout or "torchvision"
    raise WeightsError(
        f"{source}: its layers have {found}'s names, not {expected}'s. Set weights_layout: {found}"
    )


def _check_recorded(file: StateFile, source: str, config: DetectorConfig) -> None:
    """Checks the settings against those recorded in the file; keys and shapes would not show a
    difference.

    Raises:
        WeightsError: if any of them differs.
    """
    if config.weights_layout == "mmdetection":
        recorded = mmdetection_meta.recorded_settings(file.meta)
    else:
        names = [name for name in ("pixel_mean", "pixel_std") if name in file.state]
        recorded = {name: tuple(file.state[name].flatten().tolist()) for name in names}
    ours = _in_effect(config)
    wrong = [
        f"{name}: {_as_yaml(value)} (got {_as_yaml(ours[name])})"
        for name, value in recorded.items()
        if name in ours and not _equal(value, ours[name])
    ]
    if wrong:
        raise WeightsError(f"{source}: was trained with different settings. Set {', '.join(wrong)}")


def _in_effect(config: DetectorConfig) -> dict[str, Any]:
    """Returns the settings that change features but not keys or shapes, with their defaults."""
    found: dict[str, Any] = {
        "channel_order": config.channel_order or "RGB",
        "pixel_mean": config.pixel_mean or IMAGENET_MEAN_RGB,
        "pixel_std": config.pixel_std or IMAGENET_STD_RGB,
    }
    if has_bottlenecks(config.backbone):
        found["bottleneck_stride"] = config.bottleneck_stride or "3x3"
    if config.detector != "faster_rcnn":
        found |= {"p6_from": config.p6_from or "P5", "p7_relu": config.p7_relu is not False}
    return found


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, tuple):
        # float32 values of a file differ from decimals in their last digits
        return all(math.isclose(a, b, abs_tol=0.01) for a, b in zip(value, other, strict=True))
    return bool(value == other)


def _as_yaml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(f'{number:g}' for number in value)}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_whole_head(names: Iterable[str], target: Mapping[str, Tensor]) -> bool:
    return {name for name in names if name.startswith("head.")} == {
        name for name in target if name.startswith("head.")
    }
