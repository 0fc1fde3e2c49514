"""Trial keys: hashes of everything that determines a trial's numbers, and of nothing else.

A key covers the settings in canonical form, the fingerprint of the data, the teacher, the contents
of weights files, the number of workers, and the results versions of the parts that the trial uses.
It leaves out file paths, and limits that only decide whether a trial is refused.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdr.config.canonical import canonical_json
from kdr.config.detector import DetectorConfig
from kdr.config.trial import NO_NUMBERS, TeacherConfig, Trial, TrialConfig
from kdr.config.versions import RESULTS_VERSION

_DATA_PATHS = {"train_images", "train_annotations", "val_images", "val_annotations"}
_FROZEN = {"training", "labels", "trainable_stages", *NO_NUMBERS}
"""Settings that do not change the output of a teacher with weights. `labels` is in the trial's key
instead: it changes what the student learns, not the teacher."""


def make_trial(
    config: TrialConfig, *, data_id: str, weights_id: Callable[[str], str], workers: int = 1
) -> Trial:
    """Returns a trial with its key.

    Args:
        config: the trial's settings.
        data_id: fingerprint of the data set.
        weights_id: returns the identity of a `weights` setting: the hash of a file's content, or
            the name of a torchvision enum.
        workers: processes that train one trial together; they train its teacher, too.
    """
    teacher_id = _teacher_id(config, data_id=data_id, weights_id=weights_id, workers=workers)
    weights_ids = {source: weights_id(source) for source in _sources(config.student)}
    key = trial_key(
        config, data_id=data_id, teacher_id=teacher_id, weights_ids=weights_ids, workers=workers
    )
    return Trial(key=key, config=config, data_id=data_id, teacher_id=teacher_id)


def trial_key(
    config: TrialConfig,
    *,
    data_id: str,
    teacher_id: str | None,
    weights_ids: Mapping[str, str],
    workers: int,
) -> str:
    """Returns the key of a trial: 20 hexadecimal characters, the same on every machine.

    Args:
        config: the trial's settings.
        data_id: fingerprint of the data set.
        teacher_id: key of the teacher's trial, or identity of a teacher with weights; ignored if
            the trial needs no teacher.
        weights_ids: `weights` setting of the student -> identity of those weights.
        workers: processes that train the trial together.
    """
    methods = config.distill.methods()
    teacher = None
    if config.needs_teacher and config.teacher is not None:
        teacher = {"id": teacher_id, "labels": config.teacher.labels}
    return key_of(
        {
            "data": {"id": data_id, **config.data.model_dump(mode="json", exclude=_DATA_PATHS)},
            "student": _detector(config.student, weights_ids),
            "teacher": teacher,
            "distill": {name: method.canonical() for name, method in methods.items()},
            "training": config.training.canonical(),
            "seed": config.seed,
            "workers": workers,
            "versions": _versions(["trainer", "data", config.student.detector, *methods]),
        }
    )


def key_of(content: Any) -> str:
    """Returns a hash of plain values, 20 hexadecimal characters. It ignores the order of mappings,
    and 1 and 1.0 are equal.
    """
    # 80 bits: no collision is expected below about 10^12 trials
    return hashlib.blake2b(canonical_json(content).encode(), digest_size=10).hexdigest()


def _teacher_id(
    config: TrialConfig, *, data_id: str, weights_id: Callable[[str], str], workers: int
) -> str | None:
    trained = config.teacher_trial()
    if trained is not None:
        return make_trial(trained, data_id=data_id, weights_id=weights_id, workers=workers).key
    if not config.needs_teacher or config.teacher is None:
        return None
    weights_ids = {source: weights_id(source) for source in _sources(config.teacher)}
    return key_of(
        {
            "teacher": _detector(config.teacher, weights_ids),
            "versions": _versions(["trainer", config.teacher.detector]),
        }
    )


def _detector(config: DetectorConfig, weights_ids: Mapping[str, str]) -> dict[str, Any]:
    """Returns everything that determines a detector's numbers: its settings, with the identities of
    its weights instead of their paths.
    """
    ignored = {"min_loaded_share", *(_FROZEN if isinstance(config, TeacherConfig) else ())}
    # Unset settings are left out, so that a setting added by a later version changes no old key.
    settings = config.model_dump(mode="json", exclude=ignored, exclude_none=True)
    return settings | {
        name: weights_ids[settings[name]]
        for name in ("weights", "backbone_weights")
        if name in settings
    }


def _sources(config: DetectorConfig) -> set[str]:
    return {source for source in (config.weights, config.backbone_weights) if source is not None}


def _versions(parts: Iterable[str]) -> dict[str, int]:
    return {part: RESULTS_VERSION[part] for part in parts}
