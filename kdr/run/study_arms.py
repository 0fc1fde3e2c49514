"""Notes in the log which trials a study uses, no matter which study runs them."""

import json
from collections.abc import Iterable, Mapping

from kdr.config.study import Study, study_yaml
from kdr.config.trial import Trial
from kdr.plan.designs import Arm
from kdr.results.reader import Log
from kdr.results.schema import ArmRow
from kdr.results.writer import LogWriter


def note_arm(
    log: LogWriter,
    study: Study,
    trial: Trial,
    *,
    number: int = 1,
    parameters: Mapping[str, object] | None = None,
) -> None:
    """Writes that a study uses a trial; called before the trial starts.

    Args:
        log: the study's writer.
        study: the study.
        trial: a trial of this study, or another study's trial that this study also uses.
        number: number of the trial in the study, from 1.
        parameters: settings that the study chose for it, by path.
    """
    log.arms([_row(study, trial, f"trial-{number:04}", parameters)])


def note_arms(log: LogWriter, past: Log, study: Study, trials: Iterable[tuple[Arm, Trial]]) -> None:
    """Writes the arms of an ablation with their seeds, unless its last run wrote the same ones.

    Args:
        log: the study's writer.
        past: the log so far.
        study: an ablation.
        trials: each arm with each of its trials, in the order in which they run.
    """
    rows = []
    for arm, trial in trials:
        parameters = {**arm.changes, "seed": trial.config.seed}
        levels = json.dumps(arm.levels)
        rows.append(
            _row(study, trial, arm.name, parameters, levels=levels, is_reference=arm.is_reference)
        )
    # The study's settings are part of the comparison: tables show the arms of the last file, so a
    # changed file writes all of its arms again.
    known = {
        (row["arm"], row["key"], row["study_config"]) for row in past.ablation_arms_of(study.study)
    }
    if known != {(row.arm, row.key, row.study_config) for row in rows}:
        log.arms(rows)


def _row(
    study: Study,
    trial: Trial,
    arm: str,
    parameters: Mapping[str, object] | None,
    *,
    levels: str | None = None,
    is_reference: bool | None = None,
) -> ArmRow:
    return ArmRow(
        study=study.study,
        key=trial.key,
        arm=arm,
        seed=trial.config.seed,
        parameters=None if parameters is None else json.dumps(dict(parameters)),
        study_config=json.dumps(study_yaml(study)),
        levels=levels,
        is_reference=is_reference,
    )
