"""What a pre-flight measured, kept beside the study, and what is to be made of it. Without
torch.
"""

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
"""Raised by hand when a pre-flight measures something else; what earlier versions kept is measured
again."""
GRADIENT_BAND = (0.1, 1e5)
"""A method's gradient at the FPN divided by the detector's, in the first step, that gives no
warning.

A fresh head has weights near 0, so that hardly any of the detector's own gradient passes it at
first, and grows later. Below 0.1 even that is ten times the method's. With KDR's defaults 20 to
6,000 were seen on generated images; 1e5 is as far above that as its largest searched weight, 50, is
above the default."""
SAMPLING_ERROR = 1.0
"""An AP over n of the images is expected within this over sqrt(n) of the AP over all; of few images
it is mostly too high.

Held by a simulation in the tests: 80 classes as uneven as COCO's.
"""


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    state: Literal["ok", "warning", "failed"]
    text: str
    """One line, or several where a file has several problems."""
    fix: str = ""
    """What to do about it, where the text does not say so."""


@dataclass(frozen=True)
class Preflight:
    """What one pre-flight measured: plain values, which are kept as JSON."""

    losses: dict[str, float]
    """Every loss term of the first batch, as it enters the total once ramps have ended."""
    gradient_norms: dict[str, float]
    """At the student's FPN outputs: of the detection loss, of each method, and the total."""
    loaded: tuple[str, ...]
    """What was loaded into student and teacher, a line for each source."""
    levels: tuple[str, ...] = ()
    """Which level of the student learns from which of the teacher's, with sizes and channels."""
    unreached: tuple[str, ...] = ()
    """The student's levels that no method's gradient reaches."""
    not_frozen: tuple[str, ...] = ()
    """What of the teacher gets gradients or changed in a step."""
    pictures: tuple[str, ...] = ()
    """Files with the foreground of each level drawn over an image."""
    teacher_ap: float | None = None
    """AP of the teacher; None without one, and where its head is not loaded in full."""
    num_measured: int = 0
    """Validation images on which it was measured."""
    num_val: int = 0
    """Validation images in all."""
    num_fit: int | None = None
    """Images that fit into memory at a time, where the pre-flight had to halve their number; None
    where all did."""


def findings_of(measured: Preflight, config: TrialConfig) -> Iterator[Finding]:
    """What a pre-flight says of a trial: a failure is a reason not to start, a warning to look
    twice.
    """
    yield from _of_teacher(measured, config)
    yield Finding(
        "loaded",
        "ok",
        "; ".join(measured.loaded) or "nothing: student and teacher have their initial weights",
    )
    if measured.levels:
        yield Finding("features", "ok", "; ".join(measured.levels))
    if measured.pictures:
        yield Finding(
            "masks",
            "ok",
            f"{len(measured.pictures)} images, the foreground of each level: "
            f"{measured.pictures[0]} ...",
        )
    if measured.num_fit is not None:
        fix = (
            "Each trial finds its own number, since training.micro_batch is auto; set that to "
            "spare it the attempts"
        )
        yield Finding("memory", "warning", f"fits with {measured.num_fit} images at a time", fix)
    yield from _of_losses(measured)
    yield from _of_gradients(measured)
    if measured.not_frozen:
        fix = "Unexpected: please report it"
        yield Finding(
            "teacher frozen",
            "failed",
            f"a step must not touch the teacher, got {', '.join(measured.not_frozen)}",
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
        text = "cannot be measured: its head is not loaded in full"
        is_stated = config.teacher.stated_ap is not None
        fix = "Leave teacher.stated_ap out" if is_stated else ""
        yield Finding("teacher's AP", "warning" if is_stated else "ok", text, fix)
        return
    is_whole = measured.num_measured == measured.num_val
    share = "all" if is_whole else f"the first {measured.num_measured} of"
    text = f"AP {measured.teacher_ap:.3f} on {share} {measured.num_val} validation images"
    stated = config.teacher.stated_ap
    if stated is None:
        nothing = not measured.teacher_ap > 0
        fix = "It finds nothing there: check its weights and its training" if nothing else ""
        yield Finding(
            "teacher's AP",
            "warning" if nothing else "ok",
            f"{text}; teacher.stated_ap is not set",
            fix,
        )
        return
    margin = config.teacher.stated_ap_margin
    if measured.num_measured < measured.num_val:
        margin += SAMPLING_ERROR / math.sqrt(measured.num_measured)
    if abs(measured.teacher_ap - stated) <= margin:
        yield Finding("teacher's AP", "ok", f"{text}, stated {stated:g}")
        return
    rule = f"trial.teacher.stated_ap: must be met within {margin:.3f}, got {stated:g} and {text}"
    fix = "Check its weights, resize and class names; or state the AP that it has here"
    yield Finding("teacher's AP", "failed", rule, fix)


def _of_losses(measured: Preflight) -> Iterator[Finding]:
    text = ", ".join(f"{name} {value:.3g}" for name, value in measured.losses.items())
    bad = [name for name, value in measured.losses.items() if not math.isfinite(value)]
    if bad:
        fix = "Check the weights that are loaded, the learning rate and the precision"
        yield Finding(
            "losses", "failed", f"every term must be finite in the first batch, got {text}", fix
        )
    else:
        yield Finding("losses", "ok", f"in the first batch, ramps at their end: {text}")


def _of_gradients(measured: Preflight) -> Iterator[Finding]:
    low, high = GRADIENT_BAND
    detection = measured.gradient_norms["detection"]
    for name, norm in measured.gradient_norms.items():
        if name in ("detection", "total"):
            continue
        ratio = norm / detection if detection else math.inf
        text = f"of {name} at the FPN: {ratio:.3g} times the detector's"
        if low <= ratio <= high:
            yield Finding("gradients", "ok", f"{text} (expected: {low:g} to {high:,g})")
            continue
        loser = (
            f"below {low:g} the method"
            if ratio < low
            else f"above {high:,g} the detector's own gradient"
        )
        fix = (
            f"Look at the teacher's features, and change distill.{name}.weight or search it on a "
            "log scale"
        )
        yield Finding("gradients", "warning", f"{text}; {loser} hardly counts", fix)
    if measured.unreached:
        text = f"no method's gradient reaches {', '.join(measured.unreached)} of the student"
        yield Finding(
            "gradients",
            "warning",
            text,
            "They learn from the detector's losses alone: check review_links and levels",
        )


def kept_preflight(storage: Storage, study: str, trial: Trial) -> Preflight | None:
    """What an earlier pre-flight of this trial measured; None if there was none, or what it wrote
    is gone.
    """
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
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_preflight(storage: Storage, study: str, trial: Trial, measured: Preflight) -> None:
    """Writes what was measured where `kept_preflight` finds it."""
    with _path(storage, study, trial).written_aside() as aside:
        aside.write_text(json.dumps({"preflight": dataclasses.asdict(measured)}, indent=1))


def _path(storage: Storage, study: str, trial: Trial) -> StoredPath:
    return storage.preflight(study) / f"{trial.key}-{PREFLIGHT_VERSION}.json"
