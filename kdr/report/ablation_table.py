"""An ablation out of the log: its arms with mean and spread, their differences to the reference,
and what the seeds decide.
"""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from kdr.config.ablation import BASELINE, Ablation
from kdr.errors import ConfigError
from kdr.report.arm_trials import ArmTrials, LoggedArms, ablation_of, logged_arms
from kdr.report.comparison import Comparison, compared, not_paired, unequal_budget, unfinished
from kdr.report.effects import Effect, Verdict, verdicts_on
from kdr.report.factorial import factorial_effects
from kdr.report.formatting import commit_text
from kdr.report.measures import Measure, measure_of
from kdr.results.reader import Log


@dataclass(frozen=True)
class Summary:
    """One measure of one arm."""

    values: Mapping[int, float]
    """By seed, in the unit of the log."""

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean; None without a trial."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for a single trial."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclass(frozen=True)
class AblationRow:
    """One arm of the table."""

    name: str
    levels: Mapping[str, str]
    num_done: int
    """Completed trials."""
    num_planned: int
    """Trials that the study wants of this arm."""
    summaries: Mapping[str, Summary]
    """By measure."""
    keys: tuple[str, ...]
    """The trials behind the numbers, in the order of seeds."""
    is_reference: bool = False
    is_declared: bool = False
    """Whether its comparison was declared beforehand, and so is not adjusted."""
    unequal: str | None = None
    """How its budget differs from the reference's."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """By measure; empty for the reference, and in a factorial."""
    verdict: Verdict | None = None
    """On the tested measure; None for what is not tested."""

    def effect_on(self, measure: str) -> Effect | None:
        """Its difference to the arm that it is compared with."""
        comparison = self.comparisons.get(measure)
        return comparison.effect if comparison is not None else None

    @property
    def is_same_trials(self) -> bool:
        """Whether it has the trials of the arm that it is compared with."""
        return any(comparison.same_trials for comparison in self.comparisons.values())


@dataclass(frozen=True)
class EffectRow:
    """A main effect or an interaction of a factorial."""

    name: str
    measure: str
    """The tested measure; effects on others are not estimated."""
    effect: Effect
    verdict: Verdict

    def effect_on(self, measure: str) -> Effect | None:
        """The effect on a measure."""
        return self.effect if measure == self.measure else None


@dataclass(frozen=True)
class AblationTable:
    """What an ablation has found."""

    study: str
    reference: str
    """The arm that is subtracted from the others."""
    measures: tuple[Measure, ...]
    tested: Measure | None
    """The one measure that is tested; the others are described. None if none is an AP."""
    margin: float | None
    """Largest difference of the tested measure that does not matter, in the unit of the log."""
    family: int
    """Comparisons that are adjusted together."""
    rows: tuple[AblationRow, ...]
    effects: tuple[EffectRow, ...] = ()
    """Of a factorial; there the arms themselves are not compared."""
    notes: tuple[str, ...] = ()
    """What is missing, what is unequal, what comes from different code."""

    @property
    def all_rows(self) -> tuple[AblationRow | EffectRow, ...]:
        """Arms, then effects."""
        return (*self.rows, *self.effects)


def ablation_table(
    log: Log, study: str, metrics: Sequence[str] = (), *, allow_unequal: bool = False
) -> AblationTable:
    """The table of an ablation.

    Tested is the metric that the study declared, if it is among `metrics`, else the first AP among
    them: to test each of them would call for an adjustment that no reader expects.

    Args:
        log: the trial log.
        study: name of the study.
        metrics: measures to show, the study's own by default.
        allow_unequal: mark arms of unequal budgets instead of refusing them.

    Raises:
        ConfigError: if the study is no ablation, there is no such measure, or budgets are unequal.
    """
    ablation = ablation_of(log, study)
    if ablation is None:
        raise ConfigError(
            f"{study}: must be an ablation, got a study without one. Leave --metric to one, or add "
            "--by"
        )
    measures = tuple(measure_of(name) for name in dict.fromkeys(metrics or [ablation.metric]))
    found = logged_arms(log, study, measures)
    reference = found.arm(found.reference)
    is_factorial = ablation.design == "factorial"
    rows = []
    for arm in found.arms:
        is_declared = arm.name == ablation.contrast
        against = None if arm is reference or (is_factorial and not is_declared) else reference
        row = arm_row(arm, against, measures, num_planned=len(ablation.all_seeds))
        unequal = unequal_budget(arm, reference)
        rows.append(
            replace(row, is_declared=is_declared, is_reference=arm is reference, unequal=unequal)
        )
    if not allow_unequal:
        check_budgets(rows, found.reference)
    tested = _tested(measures, ablation.metric)
    margin = ablation.margin if tested is not None and tested.name == ablation.metric else None
    judged_, family = judged_rows(rows, tested, margin)
    table = AblationTable(study, found.reference, measures, tested, margin, family, tuple(judged_))
    shown = tested or measures[0]
    notes = [*cautions(found.arms), *row_notes(rows, shown), *_same_arms(rows)]
    if is_factorial and tested is not None:
        effects, left_out = _effects(found, ablation, tested, margin)
        table = replace(table, effects=tuple(effects), family=len(effects))
        notes += left_out
    return replace(table, notes=(*notes, *_declarations(ablation, tested)))


def arm_row(
    arm: ArmTrials, reference: ArmTrials | None, measures: Sequence[Measure], *, num_planned: int
) -> AblationRow:
    """One arm's row, compared with another one if there is one, without a verdict."""
    return AblationRow(
        name=arm.name,
        levels=arm.levels,
        num_done=sum(trial.is_done for trial in arm.trials.values()),
        num_planned=num_planned,
        summaries={measure.name: Summary(arm.values(measure.name)) for measure in measures},
        keys=tuple(trial.key for trial in arm.trials.values() if trial.is_done),
        comparisons=(
            {measure.name: compared(arm, reference, measure.name) for measure in measures}
            if reference
            else {}
        ),
    )


def judged_rows(
    rows: Sequence[AblationRow], tested: Measure | None, margin: float | None
) -> tuple[list[AblationRow], int]:
    """The rows with their verdicts on the tested measure, and the number of comparisons that were
    adjusted together.
    """
    effects: dict[str, Effect] = {}
    for row in rows:
        comparison = row.comparisons.get(tested.name) if tested is not None else None
        if comparison is not None and comparison.effect is not None:
            effects[row.name] = comparison.effect
    family = [row.name for row in rows if row.name in effects and not row.is_declared]
    verdicts = dict(
        zip(family, verdicts_on([effects[name] for name in family], margin=margin), strict=True)
    )
    for row in rows:
        if row.is_declared and row.name in effects:
            [verdicts[row.name]] = verdicts_on([effects[row.name]], margin=margin, adjust=False)
    num_adjusted = sum(effects[name].p is not None for name in family)
    return [replace(row, verdict=verdicts.get(row.name)) for row in rows], num_adjusted


def check_budgets(rows: Sequence[AblationRow], reference: str) -> None:
    """Refuses arms that had another budget than the reference.

    Raises:
        ConfigError: naming every such arm.
    """
    problems = [
        f"{row.name}: must have the epochs, images and workers of {reference}, got {row.unequal}. "
        "Compare arms of equal budgets, or add --allow-unequal, which marks them"
        for row in rows
        if row.unequal is not None
    ]
    if problems:
        raise ConfigError(problems)


def cautions(arms: Sequence[ArmTrials]) -> Iterator[str]:
    """Notes on trials that are missing, and on results that come from more than one version of code
    or data.
    """
    for arm in arms:
        yield from unfinished(arm)
    last = [
        trial.state.last
        for arm in arms
        for trial in arm.trials.values()
        if trial.is_done and trial.state is not None
    ]
    for name, values in (
        (
            "commits of the code",
            {commit_text(event.commit, dirty=event.dirty) for event in last},
        ),
        ("versions of the data", {str(event.data_id) for event in last}),
    ):
        if len(values) > 1:
            yield f"The trials come from {len(values)} {name}: {', '.join(sorted(values))}."


def row_notes(rows: Sequence[AblationRow], measure: Measure) -> Iterator[str]:
    """What a reader must know of each arm's comparison."""
    for row in rows:
        if row.unequal is not None:
            yield f"{row.name}: unequal budget, {row.unequal}."
        comparison = row.comparisons.get(measure.name)
        yield from comparison.notes if comparison is not None else ()


def _same_arms(rows: Sequence[AblationRow]) -> Iterator[str]:
    """Arms beside the reference that are the same trials as one before them."""
    first: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row.keys and not row.is_reference and not row.is_same_trials:
            name = first.setdefault(row.keys, row.name)
            if name != row.name:
                yield f"{row.name}: the same trials as {name}; both count in the adjustment."


def _tested(measures: Sequence[Measure], declared: str) -> Measure | None:
    aps = [measure for measure in measures if measure.is_ap]
    return next((measure for measure in aps if measure.name == declared), aps[0] if aps else None)


def _effects(
    found: LoggedArms, ablation: Ablation, tested: Measure, margin: float | None
) -> tuple[list[EffectRow], list[str]]:
    """Main effects and interactions of the seeds that every arm has completed, and what a reader
    must know of them.
    """
    values = {arm.name: arm.values(tested.name) for arm in found.arms}
    seeds = [seed for seed in ablation.all_seeds if all(seed in own for own in values.values())]
    left_out = [seed for seed in ablation.all_seeds if seed not in seeds]
    notes = (
        [
            "Effects: of the seeds that every arm has completed; left out: "
            f"{', '.join(map(str, left_out))}."
        ]
        if left_out
        else []
    )
    reference = found.arm(found.reference)
    notes += [
        note
        for arm in found.arms
        if arm is not reference and (note := not_paired(arm, reference)) is not None
    ]
    if not seeds:
        return [], notes
    levels = {factor: [BASELINE, *names] for factor, names in ablation.factors.items()}
    cells = {
        tuple(arm.levels[factor] for factor in levels): [values[arm.name][seed] for seed in seeds]
        for arm in found.arms
    }
    contrasts = factorial_effects(levels, cells)
    missing = [contrast.name for contrast in contrasts if contrast.effect is None]
    if missing:
        notes.append(f"Effects that the arms left out leave open: {', '.join(missing)}.")
    known = [
        (contrast.name, contrast.effect) for contrast in contrasts if contrast.effect is not None
    ]
    verdicts = verdicts_on([effect for _, effect in known], margin=margin)
    return [
        EffectRow(name, tested.name, effect, verdict)
        for (name, effect), verdict in zip(known, verdicts, strict=True)
    ], notes


def _declarations(ablation: Ablation, tested: Measure | None) -> Iterator[str]:
    """What was not declared beforehand."""
    if tested is not None and tested.name != ablation.metric:
        yield (
            f"The study declared {ablation.metric}. A test of {tested.name} was not declared "
            "beforehand, nor a margin for it."
        )
    elif tested is not None and ablation.margin is None:
        yield "The study declared no margin, so that no difference can be called irrelevant."
