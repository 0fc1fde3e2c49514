"""Two studies compared: arms of the same name, paired by seed."""

from dataclasses import replace

from kdr.errors import ConfigError
from kdr.report.ablation_table import (
    AblationRow,
    AblationTable,
    arm_row,
    cautions,
    check_budgets,
    judged_rows,
    row_notes,
)
from kdr.report.arm_trials import ArmTrials, LoggedArms, ablation_of, logged_arms
from kdr.report.comparison import unequal_budget
from kdr.report.measures import measure_of
from kdr.results.reader import Log


def study_comparison(
    logs: tuple[Log, Log],
    studies: tuple[str, str],
    metrics: tuple[str, ...] = (),
    *,
    allow_unequal: bool = False,
) -> AblationTable:
    """Compares arms of the first study with arms of the same name in the second.

    If no name is shared, the two references are compared. A margin holds only if both studies
    declare the same one.

    Args:
        logs: the trial logs of the two studies.
        studies: their names.
        metrics: measures to show; the first study's metric by default.
        allow_unequal: mark arms with unequal budgets instead of refusing them.

    Raises:
        ConfigError: if a study has no arms, a measure does not exist, or budgets differ.
    """
    design = ablation_of(logs[0], studies[0])
    metric = design.metric if design else "AP"
    measures = tuple(measure_of(name) for name in dict.fromkeys(metrics or (metric,)))
    first, second = (
        logged_arms(log, study, measures) for log, study in zip(logs, studies, strict=True)
    )
    rows: list[AblationRow] = []
    arms = []
    for one, other in _common(first, second):
        # each pair is a separate comparison, with the second study's arm as its reference
        mine, theirs = (
            replace(arm, name=f"{study}: {arm.name}")
            for arm, study in zip((one, other), studies, strict=True)
        )
        rows.append(
            replace(
                arm_row(theirs, None, measures, num_planned=_planned(other, second)),
                is_reference=True,
            )
        )
        rows.append(
            replace(
                arm_row(mine, theirs, measures, num_planned=_planned(one, first)),
                unequal=unequal_budget(mine, theirs),
            )
        )
        arms += [theirs, mine]
    if not allow_unequal:
        check_budgets(rows, f"the arm of {studies[1]}")
    tested = next((measure for measure in measures if measure.is_ap), None)
    # with two different margins the verdict would depend on the order of the studies
    margins = {study.ablation.margin if study.ablation else None for study in (first, second)}
    margin = (
        margins.pop()
        if len(margins) == 1 and tested is not None and tested.name == metric
        else None
    )
    judged, family = judged_rows(rows, tested, margin)
    notes = (*cautions(arms), *row_notes(rows, tested or measures[0]))
    name, reference = f"{studies[0]} against {studies[1]}", f"the same arm of {studies[1]}"
    return AblationTable(
        name, reference, measures, tested, margin, family, tuple(judged), notes=notes
    )


def _common(first: LoggedArms, second: LoggedArms) -> list[tuple[ArmTrials, ArmTrials]]:
    names = {arm.name for arm in second.arms}
    if common := [(arm, second.arm(arm.name)) for arm in first.arms if arm.name in names]:
        return common
    for study in (first, second):
        if study.ablation is None:
            raise ConfigError(
                f"--compare: the studies share no arm, and {study.study} has no reference, because "
                "it is not an ablation"
            )
    return [(first.arm(first.reference), second.arm(second.reference))]


def _planned(arm: ArmTrials, study: LoggedArms) -> int:
    return len(study.ablation.all_seeds) if study.ablation else len(arm.trials)
