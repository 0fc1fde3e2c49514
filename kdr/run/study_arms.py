"""Notes in the log which trials a study uses, whoever runs them."""

import json
from collections.abc import Mapping
from typing import Any

from kdr.config.study import Study, study_yaml
from kdr.config.trial import Trial
from kdr.results.schema import ArmRow
from kdr.results.writer import LogWriter


def note_arm(log: LogWriter, study: Study, trial: Trial, *, number: int = 1, parameters: Mapping[str, Any] | None = None) -> None:
    """Writes that a study uses a trial; done before the trial is launched.

    Args:
        log: the study's writer.
        study: the study.
        trial: a trial of this study, or one of another study that this one asks for.
        number: of the trial in the study, from 1.
        parameters: settings that the study chose for it, by path.
    """
    row = ArmRow(
        study=study.study,
        key=trial.key,
        arm=f"trial-{number:04}",
        seed=trial.config.seed,
        parameters=None if parameters is None else json.dumps(dict(parameters)),
        study_config=json.dumps(study_yaml(study)),
    )
    log.arms([row])
