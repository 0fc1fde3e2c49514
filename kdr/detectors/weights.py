"""Loads weights of torchvision, files or a teacher, and reports what was loaded."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from kdr.detectors.categories import categories_of
from kdr.detectors.detector import Detector
from kdr.detectors.layouts import with_torchvision_names
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
# batch norm's step counter: frozen batch norm has none, and inference does not need it
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class LoadReport:
    """The result of loading weights into a detector, without batch norm's step counters."""

    source: str
    backbone: float
    """Loaded share of the backbone's keys, in [0, 1]."""
    neck: float
    """Loaded share of the FPN's keys."""
    head: float
    """Loaded share of all other keys."""
    missing: tuple[str, ...]
    """Keys of the detector that the source does not have."""
    unexpected: tuple[str, ...]
    """Keys of the source that the detector does not have."""
    mismatched: tuple[str, ...]
    """Common keys that were not loaded, because shape or classes differ."""
    others: tuple[str, ...] = ()
    """Other keys in the file, such as `optimizer`."""

    def line(self) -> str:
        """Returns the report as one line of text."""
        shares = ", ".join(f"{getattr(self, part):.0%} of the {part}" for part in _PARTS)
        lists = {"with different shape or classes": self.mismatched, "missing": self.missing}
        rest = [f"; {len(keys)} {what}: {_first_few(keys)}" for what, keys in lists.items() if keys]
        rest += (
            [f"; {len(self.unexpected)} not used: {_by_part(self.unexpected)}"]
            if self.unexpected
            else []
        )
        rest += [f"; also in the file: {', '.join(self.others)}"] if self.others else []
        return f"{self.source}: loaded {shares}{''.join(rest)}"


def load_configured_weights(detector: Detector) -> tuple[LoadReport, ...]:
    """Loads the weights in the detector's settings: `backbone_weights`, then `weights`.

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
    """Loads weights of a whole detector.

    Keys with a different shape keep their values, and so does the class layer if the classes
    differ. From a file in another library's layout, the class layer is also skipped if the file has
    no class names, and the whole head if its computation differs from torchvision's.

    Args:
        detector: changed only if no error is raised.
        source: a name from `kdr.detectors.identity.DETECTOR_ENUMS`, or a file with a state_dict.
        min_share: minimum share of keys to load, of backbone and neck each.

    Raises:
        WeightsError: if the source cannot be read or has a layout other than that in the settings;
            if less than `min_share` fits; if the class names are equal but the head does not fit;
            or if keys of backbone or neck in another library's file do not fit this detector.
    """
    config, file = detector.config, read_state_file(source)
    target = detector.model.state_dict()
    state = _current_names(with_torchvision_names(file, source, config, target), target)
    names = categories_of(source, config.weights_layout, file)
    is_torchvisions = config.weights_layout is None
    # A class layer of equal shape may still mean other classes, so names decide. Files in
    # torchvision's layout without names are the user's own and taken as they are.
    foreign = (
        None
        if names == detector.categories or (names is None and is_torchvisions)
        else _CLASS_LAYER
    )
    report, fitting = _compared(detector, state, source, foreign=foreign)
    report = replace(report, others=file.others)
    if not is_torchvisions:
        _refuse_rest(report)
    hint = (
        "Check detector, backbone and fpn_channels against these weights (those of a classifier "
        "belong in backbone_weights)"
    )
    _refuse_below(report, min_share, parts=("backbone", "neck"), hint=hint)
    if names == detector.categories and is_torchvisions:
        # with equal classes, a head that fits only in part means a wrong setting
        _refuse_below(
            report,
            1.0,
            parts=("head",),
            hint="Check detector, head_norm and anchor_scale against these weights",
        )
    detector.model.load_state_dict(fitting, strict=False)
    detector.unloaded_head = frozenset(
        key for key in target if _PARTS["head"](key) and key not in fitting
    )
    return report


def load_backbone_weights(detector: Detector, source: str, *, min_share: float) -> LoadReport:
    """Loads the body of a torchvision classifier, without its classification layers.

    Args:
        detector: changed only if no error is raised.
        source: a name from `kdr.detectors.identity.BACKBONE_ENUMS`, or a file with a classifier's
            state_dict.
        min_share: minimum share of the backbone's keys to load.

    Raises:
        WeightsError: if the source cannot be read, or less than `min_share` fits.
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
        hint="Check the setting backbone against these weights",
    )
    detector.model.load_state_dict(fitting, strict=False)
    return report


def inherit(student: Detector, teacher: Detector) -> LoadReport:
    """Copies the teacher's neck and head into the student where shapes match.

    PKD and others initialise students this way. The class layer is copied only if the class names
    are equal and in equal order, the neck only between equal levels, because the same key is P2 in
    Faster R-CNN and P3 in RetinaNet. Keys that the teacher's own weights did not fill are not
    copied.
    """
    is_backbone, equal_levels = _PARTS["backbone"], student.strides == teacher.strides

    def skipped(key: str) -> bool:
        return (
            is_backbone(key)
            or key in teacher.unloaded_head
            or (not equal_levels and _PARTS["neck"](key))
        )

    state = {key: value for key, value in teacher.model.state_dict().items() if not skipped(key)}
    foreign = _CLASS_LAYER if student.categories != teacher.categories else None
    report, fitting = _compared(
        student, state, "teacher", among=lambda key: not is_backbone(key), foreign=foreign
    )
    student.model.load_state_dict(fitting, strict=False)
    return report


def _current_names(state: dict[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames keys from early torchvision files, before convolutions moved into blocks.

    torchvision (0.29) does the same in `_load_from_state_dict`, too late for the report here.
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
    """Compares a state_dict with the detector's own, without loading it.

    Args:
        detector: the detector to load into.
        state: the state_dict, with torchvision's names.
        source: name of the source, for the report.
        among: which keys of the detector count as missing.
        foreign: pattern of keys that never fit, for a layer of other classes.

    Returns:
        The report, and the part of `state` that fits.
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
    report: LoadReport, min_share: float, *, parts: tuple[str, ...], hint: str
) -> None:
    for part in parts:
        share = getattr(report, part)
        if not share >= min_share:
            raise WeightsError(
                f"{report.source}: must fill at least {min_share:.0%} of the {part}'s keys, got "
                f"{share:.0%}. {hint}. {report.line()}"
            )


def _refuse_rest(report: LoadReport) -> None:
    """Refuses keys of backbone or neck that were not loaded, since the network would be a different
    one.

    Such keys come from deformable convolutions, norms in the FPN, or P6 from another level.
    """
    rest = tuple(key for key in report.mismatched + report.unexpected if not _PARTS["head"](key))
    if rest:
        raise WeightsError(
            f"{report.source}: {len(rest)} keys of backbone and neck do not fit this detector: "
            f"{_first_few(rest)}. Check detector, backbone, fpn_channels and p6_from; kdr has no "
            "deformable convolutions, plugins, or norms in the FPN"
        )


def _by_part(keys: tuple[str, ...]) -> str:
    """Lists the keys by their first part: one of each part, and the number of the others."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        # mmdetection's averaged weights have keys without dots, such as ema_backbone_conv1_weight
        parts.setdefault("ema" if key.startswith("ema_") else key.split(".")[0], []).append(key)
    return ", ".join(
        of_part[0] + (f" and {len(of_part) - 1} more of {part}" if len(of_part) > 1 else "")
        for part, of_part in parts.items()
    )


def _first_few(keys: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
