"""Inputs of a study that every node needs: data sets and weights files."""

from collections.abc import Iterator

from kdr.config.data import DataConfig
from kdr.config.detector import is_weights_enum
from kdr.config.study import Study
from kdr.config.trial import TrialConfig
from kdr.plan.designs import arms_of


def data_of(study: Study) -> list[DataConfig]:
    """Returns the data sets of all arms, each once; without those that a search may draw later."""
    return list({config.data.model_dump_json(): config.data for config in _configs(study)}.values())


def weights_files_of(study: Study) -> list[str]:
    """Returns the weights files of all arms, each once, without torchvision's enums."""
    named = {source for config in _configs(study) for source in _weights(config)}
    return sorted(source for source in named if not is_weights_enum(source))


def _configs(study: Study) -> list[TrialConfig]:
    return (
        [study.trial_with(arm.changes) for arm in arms_of(study.ablation)]
        if study.ablation
        else [study.base]
    )


def _weights(config: TrialConfig) -> Iterator[str]:
    for detector in (config.student, config.teacher if config.needs_teacher else None):
        if detector is not None:
            yield from filter(None, (detector.weights, detector.backbone_weights))
