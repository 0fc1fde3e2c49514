"""The measurements of a pre-flight, and the findings that follow from them. Without torch."""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from kdr.config.trial import Trial, TrialConfig
from kdr.storage.files import StoredPath
from kdr.storage.layout import Storage

PREFLIGHT_VERSION = 1
"""Raised by hand when a pre-flight measures something different; stored measurements are then
repeated."""
GRADIENT_BAND = (0.1, 1e5)
"""Range of (method's gradient / detector's gradient) at the FPN in the first step, without warning.

A fresh head has weights near 0, so little of the detector's own gradient passes through it at
first; this grows later. Below 0.1, even that little is ten times the method's. KDR's defaults gave
20 to 6,000 on generated images; 1e5 is as far above that as the largest searched weight, 50, is
above the default."""
SAMPLING_ERROR = 1.0
"""The AP over n images is expected within this / sqrt(n) of the AP over all images.

Over few images it is mostly too high. A simulation in the tests checks this: 80 classes, as uneven
as COCO's.
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    state: Literal["ok", "warning", "failed"]
    text: str
    """One line, or several if a file has several problems."""
    fix: str = ""
    """The suggested action, unless the text has it."""


@dataclass(frozen=True)
class Preflight:
    """The measurements of one pre-flight: plain values, stored as JSON."""

    losses: dict[str, float]
    """Every loss term of the first batch, as it enters the total after the ramps."""
    gradient_norms: dict[str, float]
    """Norms at the student's FPN outputs: of the detection loss, of each method, and of the
    total."""
    loaded: tuple[str, ...]
    """The weights loaded into student and teacher, one line per source."""
    levels: tuple[str, ...] = ()
    """Student levels with the teacher levels they learn from, with sizes and channels."""
    unreached: tuple[str, ...] = ()
    """Student levels that no method's gradient reaches."""
    not_frozen: tuple[str, ...] = ()
    """Parts of the teacher that get gradients or changed in a step."""
    pictures: tuple[str, ...] = ()
    """Image files with the foreground of each level drawn over an image."""
    teacher_ap: float | None = None
    """AP of the teacher; None without a teacher, or if its head is not fully loaded."""
    num_measured: int = 0
    """Number of validation images on which the AP was measured."""
    num_val: int = 0
    """Number of all validation images."""
    num_fit: int | None = None
    """Images that fit into memory at once, if the pre-flight had to halve their number; else
    None."""


def findings_of(measured: Preflight, config: TrialConfig) -> Iterator[Finding]:
    """Yields the findings of a pre-flight.

    A failure is a reason not to start; a warning is a reason to check.
    """
    # causes first: a wrong teacher or missing weights explain odd losses and gradients
    yield from _of_teacher(measured, config)
    yield Finding(
        "loaded",
        "ok",
        "; ".join(measured.loaded) or "nothing: student and teacher keep their initial weights",
    )
    if measured.levels:
        yield Finding("features", "ok", "; ".join(measured.levels))
    if measured.pictures:
        yield Finding(
            "masks",
            "ok",
            f"{len(measured.pictures)} images with the foreground of each level: "
            f"{measured.pictures[0]} ...",
        )
    if measured.num_fit is not None:
        fix = (
            "Each trial will find its own number, since training.micro_batch is auto; set "
            "training.micro_batch to avoid these attempts"
        )
        yield Finding("memory", "warning", f"fits with {measured.num_fit} images at a time", fix)
    yield from _of_losses(measured)
    yield from _of_gradients(measured)
    if measured.not_frozen:
        fix = "This is a bug in kdr: please report it"
        yield Finding(
            "teacher frozen",
            "failed",
            f"a step must not change the teacher, got {', '.join(measured.not_frozen)}",
            fix,
        )
    elif config.distill.methods():
        yield Finding(
            "teacher frozen",
            "ok",
            "no gradient reaches the teacher, and a step changes nothing in it",
        )


def _of_teacher(measured: Preflight, config: TrialConfig) -> Iterator[Finding]:
    if config.teacher is None or not config.needs_teacher:
        return
    if measured.teacher_ap is None:
        text = "cannot be measured: the teacher's head is not fully loaded"
        is_stated = config.teacher.stated_ap is not None
        fix = "Remove teacher.stated_ap" if is_stated else ""
        yield Finding("teacher's AP", "warning" if is_stated else "ok", text, fix)
        return
    is_whole = measured.num_measured == measured.num_val
    share = "all" if is_whole else f"the first {measured.num_measured} of"
    text = f"AP {measured.teacher_ap:.3f} on {share} {measured.num_val} validation images"
    stated = config.teacher.stated_ap
    if stated is None:
        nothing = not measured.teacher_ap > 0
        fix = "The teacher detects nothing: check its weights and its training" if nothing else ""
        yield Finding(
            "teacher's AP",
            "warning" if nothing else "ok",
            f"{text}; teacher.stated_ap is not set",
            fix,
        )
        return
    margin = config.teacher.stated_ap_margin
    # an AP over fewer images varies more
    if measured.num_measured < measured.num_val:
        margin += SAMPLING_ERROR / math.sqrt(measured.num_measured)
    if abs(measured.teacher_ap - stated) <= margin:
        yield Finding("teacher's AP", "ok", f"{text}, stated {stated:g}")
        return
    rule = f"trial.teacher.stated_ap: must be met within {margin:.3f}, got {stated:g} and {text}"
    fix = "Check its weights, resize and class names; or set stated_ap to the measured AP"
    yield Finding("teacher's AP", "failed", rule, fix)


def _of_losses(measured: Preflight) -> Iterator[Finding]:
    text = ", ".join(f"{name} {value:.3g}" for name, value in measured.losses.items())
    bad = [name for name, value in measured.losses.items() if not math.isfinite(value)]
    if bad:
        fix = "Check the loaded weights, the learning rate and the precision"
        yield Finding(
            "losses", "failed", f"every term must be finite in the first batch, got {text}", fix
        )
    else:
        yield Finding("losses", "ok", f"in the first batch, after ramps: {text}")


def _of_gradients(measured: Preflight) -> Iterator[Finding]:
    low, high = GRADIENT_BAND
    detection = measured.gradient_norms["detection"]
    for name, norm in measured.gradient_norms.items():
        if name in ("detection", "total"):
            continue
        ratio = norm / detection if detection else math.inf  # a detector without any gradient
        text = f"{name} at the FPN: {ratio:.3g} times the detector's"
        if low <= ratio <= high:
            yield Finding("gradients", "ok", f"{text} (expected: {low:g} to {high:,g})")
            continue
        loser = (
            f"below {low:g} the method"
            if ratio < low
            else f"above {high:,g} the detector's own gradient"
        )
        fix = (
            f"Check the teacher's features; change distill.{name}.weight or search it on a log "
            "scale"
        )
        yield Finding("gradients", "warning", f"{text}; {loser} hardly counts", fix)
    if measured.unreached:
        text = f"no method's gradient reaches student levels {', '.join(measured.unreached)}"
        yield Finding(
            "gradients",
            "warning",
            text,
            "They learn from the detector's losses only: check review_links and levels",
        )


def load_preflight(storage: Storage, study: str, trial: Trial) -> Preflight | None:
    """Returns the stored measurements of this trial; None if missing, damaged or incomplete."""
    try:
        content = json.loads(_path(storage, study, trial).read_text())
        found: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in content["preflight"].items()
        }
        pictures = (
            storage.preflight(study) / path.rpartition("/")[2] for path in found["pictures"]
        )
        return Preflight(**found) if all(picture.exists() for picture in pictures) else None
    except (OSError, ValueError, KeyError, TypeError):  # a cache: measuring again costs seconds
        return None


def save_preflight(storage: Storage, study: str, trial: Trial, measured: Preflight) -> None:
    """Stores the measurements for `load_preflight`."""
    with _path(storage, study, trial).written_aside() as aside:
        aside.write_text(json.dumps({"preflight": dataclasses.asdict(measured)}, indent=1))


def _path(storage: Storage, study: str, trial: Trial) -> StoredPath:
    return storage.preflight(study) / f"{trial.key}-{PREFLIGHT_VERSION}.json"
