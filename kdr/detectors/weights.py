"""Loads weights into a detector and tells what was loaded: of torchvision's enums, of files, and of
a teacher.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from kdr.detectors.categories import categories_of
from kdr.detectors.detector import Detector
from kdr.detectors.layouts import in_torchvisions_names
from kdr.detectors.state_file import read_state, read_state_file
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
    """What was loaded into a detector. Shares are of the detector's keys, batch norm's step
    counters aside.
    """

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
    others: tuple[str, ...] = ()
    """What else is in the file, such as `optimizer`."""

    def line(self) -> str:
        """The report as one line of text."""
        shares = ", ".join(f"{getattr(self, part):.0%} of the {part}" for part in _PARTS)
        lists = {"of other shape or classes": self.mismatched, "missing": self.missing}
        rest = [f"; {len(keys)} {what}: {_first_few(keys)}" for what, keys in lists.items() if keys]
        rest += (
            [f"; {len(self.unexpected)} not used: {_by_part(self.unexpected)}"]
            if self.unexpected
            else []
        )
        rest += [f"; beside them in the file: {', '.join(self.others)}"] if self.others else []
        return f"{self.source}: loaded {shares}{''.join(rest)}"


def load_configured_weights(detector: Detector) -> tuple[LoadReport, ...]:
    """Loads what the detector's settings name: `backbone_weights`, then `weights`.

    Raises:
        WeightsError: as `load_backbone_weights` and `load_weights` do.
    """
    config, reports = detector.config, []
    if config.backbone_weights is not None:
        reports.append(
            load_backbone_weights(
                detector, config.backbone_weights, min_share=config.min_loaded_share
            )
        )
    if config.weights is not None:
        reports.append(load_weights(detector, config.weights, min_share=config.min_loaded_share))
    return tuple(reports)


def load_weights(detector: Detector, source: str, *, min_share: float) -> LoadReport:
    """Loads weights of a whole detector; keys of another shape, and the layer of other classes,
    keep what they had.

    Of a file in another library's layout, the layer of classes without names stays out too, and so
    does a head that computes something else than torchvision's.

    Args:
        detector: is changed only if nothing is refused.
        source: a name out of `kdr.detectors.identity.DETECTOR_ENUMS`, or a file with a state_dict.
        min_share: smallest share of keys to be loaded, of backbone and neck each.

    Raises:
        WeightsError: for a source that cannot be read, or in another layout than the settings say;
            below `min_share`; if the detector has the class names of these weights but not the head
            for them; or if anything of the backbone or neck of another library's file has no place
            in this detector.
    """
    config, file = detector.config, read_state_file(source)
    target = detector.model.state_dict()
    state = _current_names(in_torchvisions_names(file, source, config, target), target)
    names = categories_of(source, config.weights_layout, file)
    is_torchvisions = config.weights_layout is None
    foreign = (
        None
        if names == detector.categories or (names is None and is_torchvisions)
        else _CLASS_LAYER
    )
    report, fitting = _compared(detector, state, source, foreign=foreign)
    report = replace(report, others=file.others)
    if not is_torchvisions:
        _refuse_rest(report)
    way_out = (
        "Check detector, backbone and fpn_channels against these weights (a classifier's belong in "
        "backbone_weights)"
    )
    _refuse_below(report, min_share, parts=("backbone", "neck"), way_out=way_out)
    if names == detector.categories and is_torchvisions:
        _refuse_below(
            report,
            1.0,
            parts=("head",),
            way_out="Check detector, head_norm and anchor_scale against these weights",
        )
    detector.model.load_state_dict(fitting, strict=False)
    detector.unloaded_head = frozenset(
        key for key in target if _PARTS["head"](key) and key not in fitting
    )
    return report


def load_backbone_weights(detector: Detector, source: str, *, min_share: float) -> LoadReport:
    """Loads the body of a torchvision classifier; its classification layers are passed over.

    Args:
        detector: is changed only if nothing is refused.
        source: a name out of `kdr.detectors.identity.BACKBONE_ENUMS`, or a file with a classifier's
            state_dict.
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
    _refuse_below(
        report,
        min_share,
        parts=("backbone",),
        way_out="Check the setting backbone against these weights",
    )
    detector.model.load_state_dict(fitting, strict=False)
    return report


def inherit(student: Detector, teacher: Detector) -> LoadReport:
    """Copies the teacher's neck and head into the student where shapes match (PKD and others start
    students so).

    The class layer is copied only between equal class names in equal order, the neck only between
    equal levels: the same key belongs to P2 in Faster R-CNN and to P3 in RetinaNet. What the
    teacher's own weights did not fill is not copied.
    """
    others, equal_levels = _PARTS["backbone"], student.strides == teacher.strides

    def skipped(key: str) -> bool:
        return (
            others(key)
            or key in teacher.unloaded_head
            or (not equal_levels and _PARTS["neck"](key))
        )

    state = {key: value for key, value in teacher.model.state_dict().items() if not skipped(key)}
    foreign = _CLASS_LAYER if student.categories != teacher.categories else None
    report, fitting = _compared(
        student, state, "teacher", among=lambda key: not others(key), foreign=foreign
    )
    student.model.load_state_dict(fitting, strict=False)
    return report


def _current_names(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives keys of torchvision's early files the names that its classes have now: convolutions
    moved into blocks.
    """

    def current(key: str) -> str:
        if key in target:
            return key
        renamed = re.sub(r"(fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2", key)
        renamed = re.sub(
            r"(head\.\w+_head\.conv)\.(\d)\.(weight|bias)$",
            lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
            renamed,
        )
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
    """The report of loading `state`, and what of it fits. Keys are missing only `among` some, and
    `foreign` ones never fit.
    """
    target = detector.model.state_dict()

    def fits(key: str) -> bool:
        return (
            key in target
            and target[key].shape == state[key].shape
            and not (foreign and foreign.search(key))
        )

    fitting = {key: value for key, value in state.items() if fits(key)}
    counted = [key for key in target if not key.endswith(_COUNTER)]

    def share(part: str) -> float:
        keys = [key for key in counted if _PARTS[part](key)]
        return sum(key in fitting for key in keys) / len(keys)

    report = LoadReport(
        source=source,
        backbone=share("backbone"),
        neck=share("neck"),
        head=share("head"),
        missing=tuple(key for key in counted if key not in state and among(key)),
        unexpected=tuple(key for key in state if key not in target and not key.endswith(_COUNTER)),
        mismatched=tuple(key for key in state if key in target and key not in fitting),
    )
    return report, fitting


def _refuse_below(
    report: LoadReport, min_share: float, *, parts: tuple[str, ...], way_out: str
) -> None:
    for part in parts:
        if not getattr(report, part) >= min_share:
            rule = (
                f"must fill at least {min_share:.0%} of the {part}'s keys, got "
                f"{getattr(report, part):.0%}"
            )
            raise WeightsError(f"{report.source}: {rule}. {way_out}. {report.line()}")


def _refuse_rest(report: LoadReport) -> None:
    """Refuses what would silently be another network: deformable convolutions, norms in the FPN, P6
    from another level.
    """
    rest = tuple(key for key in report.mismatched + report.unexpected if not _PARTS["head"](key))
    if rest:
        raise WeightsError(
            f"{report.source}: backbone and neck must be those of detector, backbone, fpn_channels "
            f"and p6_from, got {len(rest)} keys of other shape or without a place: "
            f"{_first_few(rest)}. Change these settings; kdr has no deformable convolutions, "
            "plugins, or norms in the FPN"
        )


def _by_part(keys: tuple[str, ...]) -> str:
    """Keys by the part that they begin with: one of each, and how many."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        # mmdetection's averaged weights have their key in one word, such as
        # ema_backbone_conv1_weight
        parts.setdefault("ema" if key.startswith("ema_") else key.split(".")[0], []).append(key)
    return ", ".join(
        of_part[0] + (f" and {len(of_part) - 1} more of {part}" if len(of_part) > 1 else "")
        for part, of_part in parts.items()
    )


def _first_few(keys: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
