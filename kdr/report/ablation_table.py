"""An ablation's table: arms with mean and spread, differences from the reference, verdicts."""

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
    """Seed -> value, in the unit of the log."""

    @property
    def n(self) -> int:
        """Number of completed trials."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Mean over seeds; None without a trial."""
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
    """Trials that the study plans for this arm."""
    summaries: Mapping[str, Summary]
    """By measure."""
    keys: tuple[str, ...]
    """Keys of the completed trials, in seed order."""
    is_reference: bool = False
    is_declared: bool = False
    """Whether the study declared this comparison beforehand, so that its p is not adjusted."""
    unequal: str | None = None
    """How the budget differs from the reference's; None if both are equal."""
    comparisons: Mapping[str, Comparison] = field(default_factory=dict)
    """By measure; empty for the reference, and in a factorial."""
    verdict: Verdict | None = None
    """On the tested measure; None if it is not tested."""

    def effect_on(self, measure: str) -> Effect | None:
        """Returns the difference from the arm it is compared with; None if there is none."""
        comparison = self.comparisons.get(measure)
        return comparison.effect if comparison is not None else None

    @property
    def is_same_trials(self) -> bool:
        """Whether its trials are those of the arm it is compared with."""
        return any(comparison.same_trials for comparison in self.comparisons.values())


@dataclass(frozen=True)
class EffectRow:
    """A main effect or an interaction of a factorial."""

    name: str
    measure: str
    """The tested measure; effects on other measures are not estimated."""
    effect: Effect
    verdict: Verdict

    def effect_on(self, measure: str) -> Effect | None:
        """Returns the effect on the tested measure; None for any other."""
        return self.effect if measure == self.measure else None


@dataclass(frozen=True)
class AblationTable:
    """The results of an ablation."""

    study: str
    reference: str
    """The arm that is subtracted from the others."""
    measures: tuple[Measure, ...]
    tested: Measure | None
    """The only measure that is tested; None if none is an AP. The others are only described."""
    margin: float | None
    """Largest difference of the tested measure that does not matter, in the unit of the log."""
    family: int
    """Number of comparisons that share one Holm adjustment."""
    rows: tuple[AblationRow, ...]
    effects: tuple[EffectRow, ...] = ()
    """Effects of a factorial, whose arms are not compared one by one."""
    notes: tuple[str, ...] = ()
    """Missing trials, unequal budgets, mixed commits and other cautions."""

    @property
    def all_rows(self) -> tuple[AblationRow | EffectRow, ...]:
        """Arms, then effects."""
        return (*self.rows, *self.effects)


def ablation_table(
    log: Log, study: str, metrics: Sequence[str] = (), *, allow_unequal: bool = False
) -> AblationTable:
    """Builds the table of an ablation.

    Only one metric is tested: the declared one if it is in `metrics`, else the first AP there.
    Testing several would need an adjustment that no reader expects.

    Args:
        log: the trial log.
        study: name of the study.
        metrics: measures to show; the study's metric by default.
        allow_unequal: mark arms with unequal budgets instead of refusing them.

    Raises:
        ConfigError: if the study is not an ablation, a measure does not exist, or budgets differ.
    """
    ablation = ablation_of(log, study)
    if ablation is None:
        raise ConfigError(
            f"{study} is not an ablation, so its table shows one metric. Give --metric once, or "
            "group trials with --by"
        )
    measures = tuple(measure_of(name) for name in dict.fromkeys(metrics or [ablation.metric]))
    found = logged_arms(log, study, measures)
    reference = found.arm(found.reference)
    # a factorial estimates effects over all arms; of single arms only the declared one is compared
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
    judged, family = judged_rows(rows, tested, margin)
    table = AblationTable(study, found.reference, measures, tested, margin, family, tuple(judged))
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
    """Builds an arm's row without a verdict; compares it with the reference if there is one."""
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
    """Returns the rows with verdicts on the tested measure, and the number of adjusted tests."""
    effects: dict[str, Effect] = {}
    for row in rows:
        comparison = row.comparisons.get(tested.name) if tested is not None else None
        if comparison is not None and comparison.effect is not None:
            effects[row.name] = comparison.effect
    family = [row.name for row in rows if row.name in effects and not row.is_declared]
    verdicts = dict(
        zip(family, verdicts_on([effects[name] for name in family], margin=margin), strict=True)
    )
    # the declared comparison is a family of its own: that is the benefit of declaring it
    for row in rows:
        if row.is_declared and row.name in effects:
            [verdicts[row.name]] = verdicts_on([effects[row.name]], margin=margin, adjust=False)
    # an effect without spread has no p, so it does not count in the adjustment
    num_adjusted = sum(effects[name].p is not None for name in family)
    return [replace(row, verdict=verdicts.get(row.name)) for row in rows], num_adjusted


def check_budgets(rows: Sequence[AblationRow], reference: str) -> None:
    """Refuses arms whose budget differs from the reference's.

    Raises:
        ConfigError: naming every such arm.
    """
    problems = [
        f"{row.name}: must have the epochs, images and workers of {reference}, got {row.unequal}. "
        "Compare arms with equal budgets, or mark the others with --allow-unequal"
        for row in rows
        if row.unequal is not None
    ]
    if problems:
        raise ConfigError(problems)


def cautions(arms: Sequence[ArmTrials]) -> Iterator[str]:
    """Yields notes on missing trials, and on results from several commits or data versions."""
    for arm in arms:
        yield from unfinished(arm)
    # only completed trials: a failed trial from older code does no harm
    last = [
        trial.state.last
        for arm in arms
        for trial in arm.trials.values()
        if trial.is_done and trial.state is not None
    ]
    for name, values in (
        (
            "commits",
            {commit_text(event.commit, dirty=event.dirty) for event in last},
        ),
        ("data versions", {str(event.data_id) for event in last}),
    ):
        if len(values) > 1:
            yield f"The trials come from {len(values)} {name}: {', '.join(sorted(values))}."


def row_notes(rows: Sequence[AblationRow], measure: Measure) -> Iterator[str]:
    """Yields the caveats on each arm's comparison."""
    for row in rows:
        if row.unequal is not None:
            yield f"{row.name}: unequal budget, {row.unequal}."
        comparison = row.comparisons.get(measure.name)
        yield from comparison.notes if comparison is not None else ()


def _same_arms(rows: Sequence[AblationRow]) -> Iterator[str]:
    """Yields a note for each arm whose trials are all shared with an earlier arm."""
    first: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row.keys and not row.is_reference and not row.is_same_trials:
            name = first.setdefault(row.keys, row.name)
            if name != row.name:
                yield f"{row.name}: the same trials as {name}; both count in the adjustment."


def _tested(measures: Sequence[Measure], declared: str) -> Measure | None:
    # higher must be better for `helps` to mean anything, so only an AP is tested
    aps = [measure for measure in measures if measure.is_ap]
    return next((measure for measure in aps if measure.name == declared), aps[0] if aps else None)


def _effects(
    found: LoggedArms, ablation: Ablation, tested: Measure, margin: float | None
) -> tuple[list[EffectRow], list[str]]:
    """Estimates main effects and interactions, with notes on the seeds and effects left out.

    Every cell needs the same seeds, so a seed counts only if all arms have completed it.
    """
    values = {arm.name: arm.values(tested.name) for arm in found.arms}
    seeds = [seed for seed in ablation.all_seeds if all(seed in own for own in values.values())]
    left_out = [seed for seed in ablation.all_seeds if seed not in seeds]
    notes = (
        [
            "Effects use only seeds that every arm has completed; left out: "
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
        notes.append(f"Cannot be estimated without the left-out arms: {', '.join(missing)}.")
    known = [
        (contrast.name, contrast.effect) for contrast in contrasts if contrast.effect is not None
    ]
    verdicts = verdicts_on([effect for _, effect in known], margin=margin)
    return [
        EffectRow(name, tested.name, effect, verdict)
        for (name, effect), verdict in zip(known, verdicts, strict=True)
    ], notes


def _declarations(ablation: Ablation, tested: Measure | None) -> Iterator[str]:
    """Yields notes on a test or margin that the study did not declare beforehand."""
    if tested is not None and tested.name != ablation.metric:
        yield (
            f"The study declared {ablation.metric}; neither a test of {tested.name} nor a margin "
            "for it was declared beforehand."
        )
    elif tested is not None and ablation.margin is None:
        yield "The study declared no margin, so no difference can be called irrelevant."
