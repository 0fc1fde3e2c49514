"""Loads weights into a detector and tells what was loaded: of torchvision's enums, of files, and of a teacher."""

import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models import get_weight

from kdr.detectors.detector import Detector
from kdr.detectors.identity import is_enum, weights_file
from kdr.detectors.sidecar import weights_categories
from kdr.errors import WeightsError

_BODY = "backbone.body."
_NECK = "backbone.fpn."
_PARTS: dict[str, Callable[[str], bool]] = {
    "backbone": lambda key: key.startswith(_BODY),
    "neck": lambda key: key.startswith(_NECK),
    "head": lambda key: not key.startswith((_BODY, _NECK)),
}
_CLASS_LAYER = re.compile(r"classification_head\.cls_logits\.|roi_heads\.box_predictor\.")
# a count of steps that frozen batch norm does not have, and that inference does not need
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """What was loaded into a detector. Shares are of the detector's keys, batch norm's step counters aside."""

    source: str
    backbone: float
    """Share of the backbone's keys that were loaded, in [0, 1]."""
    neck: float
    """Share of the FPN's keys that were loaded."""
    head: float
    """Share of the other keys that were loaded."""
    missing: tuple[str, ...]
    """Keys of the detector that the source does not have."""
    unexpected: tuple[str, ...]
    """Keys of the source that the detector does not have."""
    mismatched: tuple[str, ...]
    """Keys of both that differ in shape, or mean other classes; they were not loaded."""

    def line(self) -> str:
        """The report as one line of text."""
        shares = ", ".join(f"{getattr(self, part):.0%} of the {part}" for part in _PARTS)
        lists = {"of other shape or classes": self.mismatched, "missing": self.missing, "unexpected": self.unexpected}
        rest = "".join(f"; {len(keys)} {what}: {_first_few(keys)}" for what, keys in lists.items() if keys)
        return f"{self.source}: loaded {shares}{rest}"


def load_configured_weights(detector: Detector) -> tuple[LoadReport, ...]:
    """Loads what the detector's settings name: `backbone_weights`, then `weights`.

    Raises:
        WeightsError: as `load_backbone_weights` and `load_weights` do.
    """
    config, reports = detector.config, []
    if config.backbone_weights is not None:
        reports.append(load_backbone_weights(detector, config.backbone_weights, min_share=config.min_loaded_share))
    if config.weights is not None:
        reports.append(load_weights(detector, config.weights, min_share=config.min_loaded_share))
    return tuple(reports)


def load_weights(detector: Detector, source: str, *, min_share: float) -> LoadReport:
    """Loads weights of a whole detector; keys of another shape, and the layer of other classes, keep what they had.

    Args:
        detector: is changed only if nothing is refused.
        source: a name out of `kdr.detectors.identity.DETECTOR_ENUMS`, or a file with a state_dict.
        min_share: smallest share of keys to be loaded, of backbone and neck each.

    Raises:
        WeightsError: for a source that cannot be read; below `min_share`; or if the detector has the class names of these
            weights but not the head for them.
    """
    state = _current_names(read_state(source), detector.model.state_dict())
    names = weights_categories(source)
    foreign = _CLASS_LAYER if names is not None and names != detector.categories else None
    report, fitting = _compared(detector, state, source, foreign=foreign)
    way_out = "Check detector, backbone and fpn_channels against these weights (a classifier's belong in backbone_weights)"
    _refuse_below(report, min_share, parts=("backbone", "neck"), way_out=way_out)
    if names == detector.categories:
        _refuse_below(report, 1.0, parts=("head",), way_out="Check detector, head_norm and anchor_scale against these weights")
    detector.model.load_state_dict(fitting, strict=False)
    return report


def load_backbone_weights(detector: Detector, source: str, *, min_share: float) -> LoadReport:
    """Loads the body of a torchvision classifier; its classification layers are passed over.

    Args:
        detector: is changed only if nothing is refused.
        source: a name out of `kdr.detectors.identity.BACKBONE_ENUMS`, or a file with a classifier's state_dict.
        min_share: smallest share of the backbone's keys to be loaded.

    Raises:
        WeightsError: for a source that cannot be read; below `min_share`.
    """
    state = {
        _BODY + key.removeprefix("features."): value
        for key, value in read_state(source).items()
        if not key.startswith(("fc.", "classifier."))
    }
    report, fitting = _compared(detector, state, source, among=_PARTS["backbone"])
    _refuse_below(report, min_share, parts=("backbone",), way_out="Check the setting backbone against these weights")
    detector.model.load_state_dict(fitting, strict=False)
    return report


def inherit(student: Detector, teacher: Detector) -> LoadReport:
    """Copies the teacher's neck and head into the student where shapes match (PKD and others start students so).

    The class layer is copied only between equal class names in equal order, the neck only between equal levels: the same key
    belongs to P2 in Faster R-CNN and to P3 in RetinaNet.
    """
    others = _PARTS["backbone"]
    skipped = others if student.strides == teacher.strides else lambda key: others(key) or _PARTS["neck"](key)
    state = {key: value for key, value in teacher.model.state_dict().items() if not skipped(key)}
    foreign = _CLASS_LAYER if student.categories != teacher.categories else None
    report, fitting = _compared(student, state, "teacher", among=lambda key: not others(key), foreign=foreign)
    student.model.load_state_dict(fitting, strict=False)
    return report


def read_state(source: str) -> dict[str, Tensor]:
    """Returns the state_dict of a torchvision enum (downloaded once into torch's cache) or of a file, on the CPU.

    In a file it may lie under `model` or `state_dict`, and its keys may have the prefix `module.` of a parallel wrapper.

    Raises:
        WeightsError: if it cannot be had or read, or holds no tensors.
    """
    if is_enum(source):
        try:
            found: dict[str, Tensor] = get_weight(source).get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"{source}: must be in torch's cache or come from the network, got {error}. "
                "Download it where there is a network, and name the file"
            ) from error
        return found
    path = weights_file(source)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{source}: must be a state_dict that torch.load(weights_only=True) reads, got: {reason} Save it with torch.save"
        ) from error
    return _state_dict_in(content, source)


def _state_dict_in(content: object, source: str) -> dict[str, Tensor]:
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(
            f"{source}: must hold a state_dict (names -> tensors), alone or under 'model' or 'state_dict', "
            f"got {type(content).__name__}. Save model.state_dict()"
        )
    prefix = "module." if all(str(key).startswith("module.") for key in content) else ""
    return {str(key).removeprefix(prefix): value for key, value in content.items()}


def _current_names(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives keys of torchvision's early files the names that its classes have now: convolutions moved into blocks."""

    def current(key: str) -> str:
        if key in target:
            return key
        renamed = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
        renamed = re.sub(r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)$", lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}", renamed)
        return renamed if renamed in target else key

    return {current(key): value for key, value in state.items()}


def _compared(
    detector: Detector,
    state: Mapping[str, Tensor],
    source: str,
    *,
    among: Callable[[str], bool] = lambda _: True,
    foreign: re.Pattern[str] | None = None,
) -> tuple[LoadReport, dict[str, Tensor]]:
    """The report of loading `state`, and what of it fits. Keys are missing only `among` some, and `foreign` ones never fit."""
    target = detector.model.state_dict()

    def fits(key: str) -> bool:
        return key in target and target[key].shape == state[key].shape and not (foreign and foreign.search(key))

    fitting = {key: value for key, value in state.items() if fits(key)}
    counted = [key for key in target if not key.endswith(_COUNTER)]
    shares = {}
    for part, belongs in _PARTS.items():
        keys = [key for key in counted if belongs(key)]
        shares[part] = sum(key in fitting for key in keys) / len(keys)
    report = LoadReport(
        source=source,
        **shares,
        missing=tuple(key for key in counted if key not in state and among(key)),
        unexpected=tuple(key for key in state if key not in target and not key.endswith(_COUNTER)),
        mismatched=tuple(key for key in state if key in target and key not in fitting),
    )
    return report, fitting


def _refuse_below(report: LoadReport, min_share: float, *, parts: tuple[str, ...], way_out: str) -> None:
    for part in parts:
        if not getattr(report, part) >= min_share:
            rule = f"must fill at least {min_share:.0%} of the {part}'s keys, got {getattr(report, part):.0%}"
            raise WeightsError(f"{report.source}: {rule}. {way_out}. {report.line()}")


def _first_few(keys: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
